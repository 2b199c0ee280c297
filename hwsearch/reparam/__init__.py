"""Train big, infer small: branches that exist while training and merge into one convolution."""

"""The command line: one small file per verb, thin over the functions of the same name."""

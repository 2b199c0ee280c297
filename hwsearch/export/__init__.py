"""One model in one folder, with everything needed to run it and to trust it."""

"""Networks only: no training loop, no files, no config objects."""

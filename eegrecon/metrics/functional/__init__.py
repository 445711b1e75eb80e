"""Metrics as pure functions of tensors; one file per family."""

"""Metrics: pure functions in `functional`, torchmetrics shells around them here."""

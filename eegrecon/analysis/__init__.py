"""Analyses of finished results: scores of reconstructions now, time windows and regions later."""

"""Generators: image embedding to picture. Names live in `eegrecon.config.GENERATORS`."""

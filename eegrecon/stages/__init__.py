"""One function per verb: `run(cfg, *, directory, command, overwrite) -> Manifest`."""

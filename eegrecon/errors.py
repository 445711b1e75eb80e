"""The few exception types of the package.

Every message is one full sentence for the person at the keyboard: what is wrong, what was expected, what was found,
where, and what to do about it. The command line prints it to stderr and exits with code 2; anything that is not an
`EegreconError` is a bug and keeps its traceback.
"""


class EegreconError(Exception):
    """Base of every error that a user can cause and mend; `str(error)` is one sentence."""


class ConfigError(EegreconError):
    """A config key, type, value or registry name is wrong (all problems of one config are listed together)."""


class DataError(EegreconError):
    """A store, picture or array is missing, truncated, reordered or holds values it must not hold."""


class ArtifactError(EegreconError):
    """A stage directory is missing, unfinished, tampered with or does not fit what the next stage asks for."""

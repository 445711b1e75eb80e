"""The tests; a package, because some installed distributions ship a `tests` package that would be found instead."""

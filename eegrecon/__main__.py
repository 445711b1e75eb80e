"""`python -m eegrecon`: the same as the `eegrecon` command."""

import sys

from eegrecon.cli import main

if __name__ == "__main__":
    sys.exit(main())

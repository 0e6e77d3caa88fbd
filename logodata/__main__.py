"""``python -m logodata``, and the program ``logodata``."""

import sys

from logodata.common.start import start


def main() -> int:
    """Run the command line of the process, and return the exit code."""
    return start("logodata")


if __name__ == "__main__":
    sys.exit(main())

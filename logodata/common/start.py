"""The first thing that a program runs. Nothing is imported outside: Ctrl-C ends a command in one line from here on."""

import sys


def start(package: str) -> int:
    """Run the program of a package with the command line of the process, and return the exit code (see
    :func:`logodata.common.errors.run_command`)."""
    try:
        from importlib import import_module

        from logodata.common.errors import run_command
    except KeyboardInterrupt:
        print(f"{package}: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return run_command(package, lambda: import_module(f"{package}.cli").main())

"""The first thing that a program runs. Nothing is imported outside: Ctrl-C ends a command in one line from here on."""

import sys


def start(package: str) -> int:
    """Run the program of a package with the command line of the process, and return the exit code (see
    :func:`logodata.common.errors.run_command`). A signal does not change it while Python ends."""
    try:
        _wait_briefly()
        import signal

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # with it schedulers end a process
        from importlib import import_module

        from logodata.common.errors import run_command

        code = run_command(package, lambda: import_module(f"{package}.cli").main())
    except KeyboardInterrupt:  # also a second one, while the first is told
        print(f"{package}: interrupted; run the same command again to continue", file=sys.stderr)
        code = 130
    _keep_exit_code(code)
    return code


def _wait_briefly() -> None:
    """Let the threads of torch sleep soon while they wait for each other, before its OpenMP runtime (libgomp) is
    loaded. By default they hold a core for milliseconds; beside other busy processes a step then takes twice as long as
    the machine's share allows (``benchmarks/busy.py``). What the user sets holds."""
    import os

    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


def _keep_exit_code(code: int) -> None:
    """Have a signal end the process at once with this code, as long as Python waits for threads and libraries, and
    have none do anything while it tears modules down, when it knows no handlers."""
    import atexit
    import os
    import signal

    def ignore() -> None:
        for number in heard:
            signal.signal(number, signal.SIG_IGN)

    heard = [it for it in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(it) is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, lambda *_: os._exit(code))
    atexit.register(ignore)

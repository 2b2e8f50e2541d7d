"""The `nestvec` command.

Exit codes: 0 done · 1 other failure · 2 bad input · 3 locked or busy · 4 damaged store · 130 interrupted. A failure is
one line on standard error. This module is light, and the commands import what they need when they run: `nestvec --help`
is quick, and a Ctrl-C while Python still imports ends as quietly as a later one.
"""

from __future__ import annotations

import os
import sys

from nestvec.errors import Busy, Conflict, Damaged, InvalidInput, NestvecError, NotFound


def main() -> None:
    """Run the command line; the entry point of the `nestvec` script."""
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        from nestvec.cli.app import app

        app(prog_name="nestvec")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(1)
    except (NestvecError, OSError) as error:
        from nestvec.cli.notes import said

        if not said(one_line(error)):
            sys.stderr.write(f"nestvec: {one_line(error)}\n")
        sys.exit(exit_code(error))


def _fill_closed_streams() -> None:
    """Python has None for a stream that was closed before it started (`nestvec ... >&-`)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def exit_code(error: Exception) -> int:
    """The exit code that says whose fault `error` is."""
    if isinstance(error, (InvalidInput, NotFound, Conflict, FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return 2
    if isinstance(error, Busy):
        return 3
    return 4 if isinstance(error, Damaged) else 1


def one_line(error: Exception) -> str:
    """The message of `error` on one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _silence_stdout() -> None:
    """Point standard output at nothing: its reader has gone, and the interpreter flushes it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

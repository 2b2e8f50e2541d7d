"""The `nestvec` command.

Exit codes: 0 done · 1 other failure · 2 bad input · 3 locked or busy · 4 damaged store · 130 interrupted. A failure is
one line on standard error. Heavy imports happen inside the commands, so that `nestvec --help` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nestvec import cli_bench, cli_build, cli_records
from nestvec.cli_options import DEFAULT_DB, Db, Json
from nestvec.errors import Busy, Conflict, Damaged, InvalidInput, NestvecError, NotFound

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adaptive-retrieval vector search: build, serve, search and measure collections.",
)
cli_build.register(app)
cli_records.register(app)
cli_bench.register(app)


@app.command()
def serve(
    db: Db = DEFAULT_DB,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on. [default: 8765]")] = None,
) -> None:
    """Serve a database over REST until Ctrl-C (or SIGTERM)."""
    from pydantic import ValidationError

    from nestvec.server.app import serve as run
    from nestvec.server.settings import Settings

    given: dict[str, Any] = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems = "; ".join(f"NESTVEC_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise InvalidInput(f"settings of the service: {problems}") from None
    run(db, settings)


@app.command()
def demo(
    db: Annotated[Path, typer.Option("--db", help="Directory of the demo database.")] = Path("demo-db"),
    json: Json = False,
) -> None:
    """Build a collection from the Python documentation, serve it, and run one text query through REST."""
    from nestvec.demo import run_demo

    run_demo(db, as_json=json)


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


def main() -> None:
    """Run the command line; the entry point of the `nestvec` script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(1)
    except (NestvecError, OSError) as error:
        sys.stderr.write(f"nestvec: {one_line(error)}\n")
        sys.exit(exit_code(error))


def _silence_stdout() -> None:
    """Point standard output at nothing: its reader has gone, and the interpreter flushes it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

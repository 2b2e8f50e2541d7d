"""The application that typer runs: every command, and the two that own a process (serve, demo)."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from nestvec.cli import access, backups, bench, build, evaluation, maintenance, recall, records, train, transfer
from nestvec.cli.options import DEFAULT_DB, Db, Json
from nestvec.errors import InvalidInput

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for commands in (build, records, recall, maintenance, transfer, backups, access, bench, evaluation, train):
    commands.register(app)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(version("nestvec"))
        raise typer.Exit


@app.callback()
def main(
    told: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Adaptive-retrieval vector search: build, serve, search and measure collections."""


@app.command()
def serve(
    db: Db = DEFAULT_DB,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on. [default: 8765]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that share the work. [default: 1]")] = None,
    recall_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of searches answered exactly as well. [default: 0.001]"),
    ] = None,
    recalibrate: Annotated[
        bool | None,
        typer.Option("--recalibrate/--no-recalibrate", help="Calibrate again where live recall misses its target."),
    ] = None,
) -> None:
    """Serve a database over REST until Ctrl-C (or SIGTERM). What has no option here is set by NESTVEC_... variables."""
    from pydantic import ValidationError

    from nestvec.server.settings import Settings
    from nestvec.server.start import serve as run

    options = {
        "host": host,
        "port": port,
        "workers": workers,
        "recall_share": recall_share,
        "recalibrate": recalibrate,
    }
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
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

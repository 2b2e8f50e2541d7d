"""What the commands print: JSON for programs, small tables for people, progress on standard error.

Standard output carries the answer and nothing else, so that `nestvec ... --json | jq` always works.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

ProgressCallback = Callable[[str, int, int | None], None]
"""`progress(step, done, total)`: `total` is None while it is not known."""

_PLAIN_INTERVAL_S = 2.0


def plain(value: object) -> object:
    """The JSON form of a result: its own if it has one, dataclasses as objects, arrays as lists, paths as text."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def print_json(value: object) -> None:
    """Write one line of JSON to standard output."""
    print_line(json.dumps(plain(value), ensure_ascii=False))


def print_line(text: str = "") -> None:
    """Write one line to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_result(as_json: bool, value: object, line: str) -> None:
    """Write `value` as JSON, or else the `line` that says it to people."""
    if as_json:
        print_json(value)
    else:
        print_line(line)


def note(text: str) -> None:
    """Write one line to standard error: for people, never part of the answer."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def printable(text: str, limit: int = 100) -> str:
    """The first line of `text`, at most `limit` characters, without control characters.

    Stored text is somebody else's: an escape sequence in it must not reach the terminal.
    """
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    clean = "".join(char if char.isprintable() else "�" for char in line)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a small table to standard output; the last column takes what width is left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    Console(file=sys.stdout, width=width, highlight=False).print(table)
    sys.stdout.flush()


@contextmanager
def progress_reporter() -> Iterator[ProgressCallback]:
    """Bars on a terminal, else a plain line per step and every two seconds; both on standard error."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def report(step: str, done: int, total: int | None) -> None:
        if step not in tasks:
            bars.start()  # not before there is something to show: a question may come first
            tasks[step] = bars.add_task(step, total=total)
        bars.update(tasks[step], completed=done, total=total)

    try:
        yield report
    finally:
        bars.stop()


def _plain_progress() -> ProgressCallback:
    last: dict[str, float] = {}

    def report(step: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if step in last and done != total and now - last[step] < _PLAIN_INTERVAL_S:
            return
        last[step] = now
        note(f"{step}: {done:,}" + ("" if total is None else f" of {total:,}"))

    return report

"""Python's documentation, parsed once in a process: two seconds of processor, and many tests want it."""

from __future__ import annotations

from functools import cache

from nestvec.engine import stdlib_docs


@cache
def python_passages() -> tuple[stdlib_docs.Passage, ...]:
    """All passages, as `stdlib_docs.passages` yields them; not to be changed."""
    return tuple(stdlib_docs.passages())

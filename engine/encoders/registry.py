"""Finds encoders by name among the installed packages (entry points of the group `nestvec.encoders`)."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from nestvec.engine.encoders.protocol import Encoder
from nestvec.errors import InvalidInput, NotFound

GROUP = "nestvec.encoders"


def names() -> list[str]:
    """The names of all installed encoders, sorted."""
    return sorted(_entries())


@cache
def load_encoder(name: str) -> Encoder:
    """The encoder called `name`, loaded once per process.

    Raises NotFound listing the installed names, or InvalidInput if the package's object is not an encoder.
    """
    entry = _entries().get(name)
    if entry is None:
        raise NotFound(f"no encoder {name!r} is installed; there is: {', '.join(names()) or 'none'}")
    encoder = entry.load()()
    if not isinstance(encoder, Encoder):
        raise InvalidInput(f"{entry.value} gave a {type(encoder).__name__}, which lacks members of an encoder")
    return encoder


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}

"""How errors tell what came: by kind and size. A value may be anybody's data, and errors end in answers and logs."""

from __future__ import annotations

from collections.abc import Mapping

_LONGEST = 1 << 64


def shown(value: object) -> str:
    """A value in an error: numbers, bools and null as they are, all else by kind and size."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value) if abs(value) <= _LONGEST else "an integer beyond 64 bits"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if isinstance(value, Mapping):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} values"
    return f"a {type(value).__name__}"

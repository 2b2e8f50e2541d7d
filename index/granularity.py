"""Granularities: the prefix lengths at which a nested embedding may be read."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from nestvec.errors import InvalidInput

_USUAL = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072)


def check_granularities(granularities: Iterable[int], dims: int) -> tuple[int, ...]:
    """Return them as a tuple: whole numbers, strictly ascending, within 1..dims, the last equal to dims.

    Raises InvalidInput that names the first rule broken.
    """
    found = tuple(granularities)
    if not found:
        raise InvalidInput(f"granularities must hold at least ({dims},), got none")
    for size in found:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= dims:
            raise InvalidInput(f"each granularity must be a whole number in 1..{dims}, got {size!r}")
    if any(low >= high for low, high in pairwise(found)):
        raise InvalidInput(f"granularities must be strictly ascending, got {found}")
    if found[-1] != dims:
        raise InvalidInput(f"the last granularity must be dims={dims}, got {found}")
    return found


def default_granularities(dims: int) -> tuple[int, ...]:
    """Usual prefix lengths below `dims`, then dims: 768 -> (64, 128, 256, 384, 768).

    A prefix longer than half of dims saves too little to be worth a stage.
    """
    if dims < 1:
        raise InvalidInput(f"dims must be >= 1, got {dims}")
    return (*(size for size in _USUAL if size * 2 <= dims), dims)

"""Prefix lengths: what is accepted, and the defaults."""

from __future__ import annotations

import pytest

from nestvec.errors import InvalidInput
from nestvec.index.granularity import check_granularities, default_granularities


def test_default_granularities_of_usual_sizes() -> None:
    assert default_granularities(768) == (64, 128, 256, 384, 768)
    assert default_granularities(32) == (32,)


@pytest.mark.parametrize("dims", [1, 2, 63, 64, 65, 96, 128, 256, 384, 1000, 1024, 4096])
def test_default_granularities_are_always_acceptable(dims: int) -> None:
    sizes = default_granularities(dims)
    assert check_granularities(sizes, dims) == sizes


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((), "at least"),
        ((4, 4, 8), "strictly ascending"),
        ((6, 4, 8), "strictly ascending"),
        ((4, 6), "last granularity must be dims=8"),
        ((0, 8), r"in 1\.\.8, got 0"),
        ((4, 9), r"in 1\.\.8, got 9"),
        ((4.0, 8), r"got 4\.0"),
        ((True, 8), "got True"),
    ],
)
def test_bad_granularities_are_refused_with_the_rule(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_granularities(sizes, 8)


def test_default_granularities_refuse_no_dims() -> None:
    with pytest.raises(InvalidInput, match="dims must be >= 1, got 0"):
        default_granularities(0)

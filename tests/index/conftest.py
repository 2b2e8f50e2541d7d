"""The kernels to test: every instruction set of this machine, and numpy."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nestvec.index.kernels import reference, reference_encode, reference_reaching, reference_search

try:
    from nestvec.index.kernels import native

    ISAS = native.available()
except ImportError:
    ISAS = []

NUMPY = SimpleNamespace(
    **{name: getattr(reference_search, name) for name in reference_search.__all__},
    band_scores=reference.band_scores,
    encode=reference_encode.encode,
    encode_aware=reference_encode.encode_aware,
    pack=reference_encode.pack,
    reaching=reference_reaching.reaching,
)


def _running(name: str) -> Iterator[Any]:
    if name == "numpy":
        yield NUMPY
        return
    before = native.isa()
    native.use_isa(name)
    yield native
    native.use_isa(before)


@pytest.fixture
def twin() -> Any:  # noqa: ANN401
    """The numpy kernels, which the others must equal."""
    return NUMPY


@pytest.fixture(params=ISAS)
def compiled(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The C++ kernels, on each instruction set in turn."""
    yield from _running(request.param)


@pytest.fixture(params=[*ISAS, "numpy"])
def kernel(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The C++ kernels, on each instruction set in turn, and the numpy kernels."""
    yield from _running(request.param)

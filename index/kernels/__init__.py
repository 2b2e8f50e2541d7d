"""The inner loops: C++ where it was built, else numpy with the same results (`reference*` say what each one means).

The environment variable NESTVEC_ISA forces one of avx512, avx2, portable (C++) or numpy, for tests and comparisons.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from nestvec.errors import InvalidInput

try:
    from nestvec.index.kernels import native

    _available = [*native.available(), "numpy"]
except ImportError:
    _available = ["numpy"]


def _choose(wanted: str | None) -> str:
    if wanted and wanted not in _available:
        raise InvalidInput(
            f"NESTVEC_ISA={wanted} is not available here; use one of {', '.join(_available)}, or unset it"
        )
    if not wanted and _available == ["numpy"]:
        warnings.warn(
            "nestvec's C++ kernels are not built: searching with numpy, many times slower. To get the fast path, "
            "install a C++17 compiler (on Debian or Ubuntu: apt-get install g++) and reinstall nestvec. "
            "NESTVEC_ISA=numpy silences this.",
            RuntimeWarning,
            stacklevel=2,
        )
    return wanted or _available[0]


_backend = _choose(os.environ.get("NESTVEC_ISA"))


def backend() -> str:
    """What runs the kernels: "avx512", "avx2" or "portable" (C++), or "numpy"."""
    return _backend


if TYPE_CHECKING or _backend == "numpy":
    from nestvec.index.kernels.reference import band_scores
    from nestvec.index.kernels.reference_encode import encode, encode_aware, pack
    from nestvec.index.kernels.reference_reaching import reaching
    from nestvec.index.kernels.reference_search import (
        GatheredRows,
        Layer,
        Model,
        Plan,
        Recording,
        Router,
        Searcher,
        Segment,
        resident,
    )
else:
    from nestvec.index.kernels.native import (
        GatheredRows,
        Layer,
        Model,
        Plan,
        Recording,
        Router,
        Searcher,
        Segment,
        band_scores,
        encode,
        encode_aware,
        pack,
        reaching,
        resident,
    )

    native.use_isa(_backend)

__all__ = [
    "GatheredRows",
    "Layer",
    "Model",
    "Plan",
    "Recording",
    "Router",
    "Searcher",
    "Segment",
    "backend",
    "band_scores",
    "encode",
    "encode_aware",
    "pack",
    "reaching",
    "resident",
]

"""The inner loops: C++ where it was built, else numpy with the same results (`reference` says what each one means).

The environment variable NESTVEC_ISA forces one of avx512, avx2, portable (C++) or numpy, for tests and comparisons.
"""

from __future__ import annotations

import os
import warnings

from nestvec.errors import InvalidInput
from nestvec.index.kernels import reference

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


if _backend == "numpy":
    scan_lists, band_scores, encode, pack = (
        reference.scan_lists,
        reference.band_scores,
        reference.encode,
        reference.pack,
    )
else:
    native.use_isa(_backend)
    scan_lists, band_scores, encode, pack = native.scan_lists, native.band_scores, native.encode, native.pack

__all__ = ["backend", "band_scores", "encode", "pack", "scan_lists"]

"""The machine line: what a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_PACKAGES = ("nestvec", "numpy", "faiss-cpu", "apsw")


def describe() -> dict[str, str]:
    """Cpu model, cores, kernel backend, system and versions, all as text."""
    from nestvec.index.kernels import backend

    facts = {"cpu": _cpu(), "cores": str(os.cpu_count()), "kernels": backend()}
    facts |= {"system": platform.platform(), "python": platform.python_version()}
    return facts | {package: _version(package) for package in _PACKAGES}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def peak_rss_bytes() -> int:
    """The highest resident size of this process so far, in bytes.

    VmHWM where Linux gives it: ru_maxrss is inherited from the parent across exec.
    """
    status = Path("/proc/self/status")
    high = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if high:
        return int(high[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

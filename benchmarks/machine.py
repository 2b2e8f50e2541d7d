"""The machine card: what a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("nestvec", "numpy", "faiss-cpu", "apsw")
_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16", "avx512_fp16")
_MORE_FLAGS = ("avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")
_READ_BANDWIDTH = """
import numpy, time
a = numpy.ones(1 << 26, numpy.float32)
best = 1e9
for _ in range(5):
    began = time.perf_counter()
    numpy.dot(a, a)
    best = min(best, time.perf_counter() - began)
print(a.nbytes / best)
"""


@cache
def describe() -> dict[str, str]:
    """CPU, cores, memory, one core's read bandwidth, kernels, system and versions, all as text."""
    from nestvec.index.kernels import backend

    info = _cpu_info()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    facts = {"cpu": _find(info, "model name") or platform.processor() or platform.machine()}
    facts |= {"cores": str(len(allowed)), "MHz reported": _find(info, "cpu MHz") or "unknown"}
    flags = (_find(info, "flags") or _find(info, "Features") or "").split()
    facts |= {"instructions": " ".join(flag for flag in (*_FLAGS, *_MORE_FLAGS) if flag in flags) or "unknown"}
    facts |= {"memory": _memory(), "huge pages": _huge_pages(), "read by one core": _read_bandwidth()}
    facts |= {"kernels": backend(), "system": platform.platform(), "python": platform.python_version()}
    return facts | {package: _version(package) for package in _PACKAGES}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int | None:
    """Memory that can still be had, bytes; None where Linux does not say."""
    info = Path("/proc/meminfo")
    kib = _find(info.read_text(), "MemAvailable") if info.exists() else None
    return int(kib.split()[0]) * 1024 if kib else None


def _cpu_info() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""


def _find(text: str, key: str) -> str | None:
    found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _memory() -> str:
    info = Path("/proc/meminfo")
    kib = _find(info.read_text(), "MemTotal") if info.exists() else None
    return f"{int(kib.split()[0]) / (1 << 20):.0f} GiB" if kib else "unknown"


def _huge_pages() -> str:
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    found = re.search(r"\[(\w+)\]", switch.read_text()) if switch.exists() else None
    return found[1] if found else "unknown"


def _read_bandwidth() -> str:
    """Bytes per second that one core reads from 256 MiB: a dot product of an array with itself, best of five."""
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-c", _READ_BANDWIDTH]
    done = subprocess.run(command, env=os.environ | pinned, capture_output=True, text=True, check=False)
    return "unknown" if done.returncode else f"{float(done.stdout) / 1e9:.0f} GB/s"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

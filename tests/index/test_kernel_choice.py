"""Which kernels a fresh process uses: the best here, the one that NESTVEC_ISA names, or numpy with a warning."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

try:
    from nestvec.index.kernels import native

    NAMES = [*native.available(), "numpy"]
except ImportError:
    NAMES = ["numpy"]


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name != "NESTVEC_ISA"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**base, **environment}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_forces_an_instruction_set(name: str) -> None:
    code = (
        "from nestvec.index import kernels as k\n"
        "native = [getattr(k, name).__module__.endswith('native') for name in k.__all__ if name != 'backend']\n"
        "print(k.backend(), sum(native), len(native))\n"
    )
    done = _python(code, NESTVEC_ISA=name)
    assert done.stdout.split() == [name, "0" if name == "numpy" else "14", "14"], done.stderr


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    done = _python("import nestvec.index.kernels", NESTVEC_ISA="sse9")
    assert done.returncode != 0
    assert f"NESTVEC_ISA=sse9 is not available here; use one of {', '.join(NAMES)}" in done.stderr


def test_without_the_extension_numpy_serves_after_one_warning() -> None:
    code = (
        "import sys, warnings; sys.modules['nestvec.index.kernels._native'] = None\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import nestvec.index.kernels as k\n"
        "print(k.backend(), len(seen), seen[0].category.__name__, seen[0].message)\n"
    )
    done = _python(code)
    assert done.stdout.startswith("numpy 1 RuntimeWarning"), done.stderr
    assert "g++" in done.stdout


def test_asking_for_numpy_is_silent() -> None:
    done = _python("import warnings; warnings.simplefilter('error'); import nestvec.index.kernels", NESTVEC_ISA="numpy")
    assert done.returncode == 0
    assert not done.stderr

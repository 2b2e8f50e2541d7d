"""Builds the C++ kernels with the address and undefined-behaviour sanitizers, outside the source tree, and runs their
tests on that build: `make sanitize`. Needs g++ with libasan and libubsan (on Debian and Ubuntu they come with g++).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[1]
KERNELS = Path("index") / "kernels"
TESTS = ("test_kernels.py", "test_searcher.py", "test_searcher_rules.py", "test_encode.py")
SANITIZE = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-g", "-O1", *SANITIZE)


def main() -> int:
    """Build, test, and return pytest's exit status."""
    compiler = os.environ.get("CXX", "g++")
    preload = [_library(compiler, name) for name in ("libasan.so", "libstdc++.so")]
    with tempfile.TemporaryDirectory(prefix="nestvec-sanitize-") as name:
        scratch = Path(name)
        unwanted = shutil.ignore_patterns("*.so", "*.cpp", "*.hpp", "__pycache__")
        shutil.copytree(ROOT / "nestvec", scratch / "nestvec", ignore=unwanted)  # follows the links engine, index, ...
        _build(compiler, scratch)
        return _test(scratch, preload)


def _library(compiler: str, name: str) -> str:
    """Path of one of the compiler's libraries; the sanitizers' runtime must be loaded before Python itself."""
    if shutil.which(compiler) is None:
        sys.exit(f"{compiler} not found: install g++, or name another g++ with CXX=...")
    asked = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = asked.stdout.strip()
    if not os.path.isabs(path):
        sys.exit(f"{compiler} has no {name}: install g++ with its sanitizer libraries, or name another with CXX=...")
    return path


def _build(compiler: str, scratch: Path) -> None:
    """scratch/nestvec/index/kernels/_native*.so from every .cpp of the kernels."""
    include = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    sources = sorted((ROOT / KERNELS).glob("*.cpp"))
    objects = [scratch / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        subprocess.run([compiler, *FLAGS, *include, "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    module = scratch / "nestvec" / KERNELS / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(module)], check=True)


def _test(scratch: Path, preload: list[str]) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "NESTVEC_ISA"} | {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # Python itself frees little at its end
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",  # an abort makes pytest say which test it was
        "PYTHONPATH": str(scratch),
        "PYTHONMALLOC": "malloc",  # so that overruns of Python's own small blocks are seen too
    }
    check = "from nestvec.index.kernels import _native as built; print(built.__file__)"
    asked = [sys.executable, "-c", check]
    used = subprocess.run(asked, cwd=scratch, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    if not used.startswith(str(scratch)):
        sys.exit(f"the tests would run on {used.strip()}, which is not the build with the sanitizers")
    tests = [str(path) for name in TESTS if (path := ROOT / "tests" / "index" / name).exists()]
    options = ["-q", "-p", "no:cacheprovider", "--capture=sys"]  # a sanitizer writes past Python, to the terminal
    options += [f"--config-file={ROOT / 'pyproject.toml'}", f"--rootdir={ROOT}"]
    return subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=scratch, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())

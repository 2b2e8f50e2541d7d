"""The wheel built from the sdist is whole: a missing sub-package works editable and is absent from a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def unhurried(path: Path) -> str:
    """A compiler that does not optimise: this is about what is in the wheel, and half a minute shorter."""
    path.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    path.chmod(0o700)
    return str(path)


@pytest.mark.timeout(900)
def test_the_wheel_from_the_sdist_imports_every_module(tmp_path: Path) -> None:
    compiler = unhurried(tmp_path / "compiler")
    run(sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT), cwd=tmp_path, CC=compiler, CXX=compiler)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    sources = {
        (f"nestvec/{path.relative_to(ROOT)}" if folder != "nestvec" else str(path.relative_to(ROOT)))
        for folder in ("nestvec", "engine", "index", "server", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    assert names == sources
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import pkgutil, importlib, nestvec\n"
        "assert nestvec.__file__.startswith(sys.argv[1]), nestvec.__file__\n"
        "for m in pkgutil.walk_packages(nestvec.__path__, 'nestvec.'):\n"
        "    try: importlib.import_module(m.name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        if error.name != 'torch' or not m.name.startswith('nestvec.train.'): raise\n"
        "from nestvec.index import kernels\n"
        "from nestvec.engine.encoders.registry import load_encoder\n"
        "print(kernels.backend())\n"
    )
    backend = run(sys.executable, "-W", "error", "-c", script, str(site), cwd=tmp_path).strip()
    assert backend in {"avx512", "avx2", "portable"}

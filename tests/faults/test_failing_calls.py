"""F8: the N-th write, fsync, fdatasync, open, rename, mmap or read of a verb fails, for every N.

Each case ends in an error of ours or in success, reads go on, the verb works when it is called again, and the store
holds what was acknowledged, also after it was opened anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faultlib import LONG

HERE = Path(__file__).parent
VERBS = ("upsert", "delete", "search", "seal", "build", "compact", "snapshot", "restore", "create", "open")
SLICE = ("upsert", "seal", "compact", "snapshot", "open")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux")
    library = tmp_path_factory.mktemp("shim") / "failing.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, HERE / "failing.c", "-ldl"], check=True)
    return library


def run(shim: Path, tmp_path: Path, verb: str, step: int) -> dict[str, int]:
    environment = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "failing.py"), str(tmp_path), verb, str(step)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print(f"F8: {verb}: {result}")
    return result


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("verb", VERBS if LONG else SLICE)
def test_any_call_may_fail(shim: Path, tmp_path: Path, verb: str) -> None:
    result = run(shim, tmp_path, verb, 1 if LONG else 25)
    assert result["fired"] >= 5, "too few faults fired: this shows nothing"
    assert result["failed"] >= 1

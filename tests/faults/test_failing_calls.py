"""F8: the N-th write, fsync, fdatasync, open, rename, mmap or read of a verb fails: every N up to 40, some beyond.

Each case ends in an error of ours or in success, reads go on, the verb works when it is called again, and the store
holds what was acknowledged, also after it was opened anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faultlib import LONG

HERE = Path(__file__).parent
VERBS = ("upsert", "delete", "search", "seal", "build", "compact", "snapshot", "restore", "create", "open")
PUBLISHED = ("write", "fsync", "open", "rename", "read")
OF_VERB = dict.fromkeys(("seal", "build", "compact", "snapshot", "restore", "create"), PUBLISHED) | {
    "search": ("open", "mmap"),
    "open": ("open", "read"),
    "upsert": ("write", "fdatasync", "open"),
    "delete": ("write", "fdatasync", "open"),
}
"""Calls that a verb cannot do without: that none of them fired would mean that the shim was not there."""
SLICE = ("upsert", "seal", "compact", "snapshot", "open")


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory, where there is one: what a call does when it fails has nothing to do with the disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux")
    library = tmp_path_factory.mktemp("shim") / "failing.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, HERE / "failing.c", "-ldl"], check=True)
    return library


def run(shim: Path, tmp_path: Path, verb: str) -> dict[str, int]:
    """Every call up to the `first`, then every `step`-th, as often as the verb makes it; that all calls from one on
    fail is tried at every fourth."""
    first, step = ("40", "20") if LONG else ("1", "25")
    environment = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "failing.py"), str(tmp_path), verb, first, step]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print(f"F8: {verb}: {result}")
    return result


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("verb", VERBS if LONG else SLICE)
def test_any_call_may_fail(shim: Path, fast: Path, verb: str) -> None:
    result = run(shim, fast, verb)
    assert result["fired"] >= 5, "too few faults fired: this shows nothing"
    if LONG:
        never = [call for call in OF_VERB.get(verb, ("write", "open", "read")) if not result[f"{call} fired"]]
        assert not never, f"{never} never fired in {verb}"
    assert result["failed"] >= 1

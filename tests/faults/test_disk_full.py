"""F6, F7: the disk is full, or files may not grow: a clean error, reads go on, writing resumes once there is room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultlib import amount

HERE = Path(__file__).parent
MIB = 1 << 20

LIMITED = """
import json, resource, sys
from pathlib import Path
from diskful import fill_until_refused, resume
import nestvec
path, size = Path(sys.argv[1]), int(sys.argv[2])
with nestvec.open(path) as database:
    database.create_collection("c", dims=8, metric="dot", bm25=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    refused, model = fill_until_refused(database, Path(sys.argv[3]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    model = resume(database, model)
print(json.dumps({"refused": refused, "records": len(model)}))
"""

FULL = """
import json, subprocess, sys
from pathlib import Path
from diskful import fill_until_refused, resume
import nestvec
path = Path(sys.argv[1])
with nestvec.open(path) as database:
    refused, model = fill_until_refused(database, Path(sys.argv[2]))
    subprocess.run(["mount", "-o", "remount,size=256m", str(path.parent)], check=True)
    model = resume(database, model)
print(json.dumps({"refused": refused, "records": len(model)}))
"""


def run(script: str, *arguments: str) -> dict[str, int]:
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert result["refused"] >= 1
    return result


@pytest.mark.parametrize("kib", [160, 200, 256, 384, 512, 700, 1000, 1500, 2200, 3000][:: amount(4, 1)])
def test_files_that_may_not_grow(tmp_path: Path, kib: int) -> None:
    print("F7:", kib, "KiB", run(LIMITED, str(tmp_path / "db"), str(kib << 10), str(tmp_path / "log")))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB in memory, where this may be mounted."""
    home = tmp_path / "small"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", home], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs here")
    yield home
    subprocess.run(["umount", "-l", home], check=True)


@pytest.mark.parametrize("kib", [1600, 2000, 2500, 3000, 3500, 4000, 4500, 5000, 6000, 7000][:: amount(4, 1)])
def test_a_full_disk(small_disk: Path, tmp_path: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", small_disk], check=True)
    print("F6:", kib, "KiB", run(FULL, str(small_disk / "db"), str(tmp_path / "log")))

"""F13: the clock jumps a day forth and back: nothing is lost, no lock expires, and timers go on as if nothing was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faultlib import SEED, amount

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler and Linux")
def test_a_jump_of_the_clock_changes_nothing(tmp_path: Path) -> None:
    shim = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", shim, HERE / "clock.c", "-ldl"], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "NESTVEC_API_KEY"}
    environment |= {"LD_PRELOAD": str(shim), "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    for turn in range(amount(1, 5)):
        command = [sys.executable, str(HERE / "moving.py"), str(tmp_path / f"db{turn}"), str(SEED + turn)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["asked"] > 20, "the clock was never asked: this shows nothing"
        print(f"F13: {found}")

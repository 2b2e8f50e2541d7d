"""I1, I2 and I4 in full: every target under atheris, then schemathesis; exit code 1 where anything was found.

python tests/fuzz/all.py --seconds 120 --examples 100
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
TARGETS = ("filters", "bodies", "manifests", "segments", "generations", "snapshots")


def run(target: str, seconds: int) -> bool:
    """Whether a target ran its time and found nothing; what it found stays in this folder as crash-*."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="nestvec-fuzz-", dir=memory if memory.is_dir() else None) as home:
        command = [sys.executable, str(HERE / f"{target}.py"), f"-max_total_time={seconds}"]
        environment = os.environ | {"NESTVEC_FUZZ_HOME": home}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr.splitlines()
    good = done.returncode == 0 and any(line.startswith("Done ") for line in said)
    print(f"I4: {target}: {said[-1] if good else chr(10).join(said[-40:])}", flush=True)
    return good


def main() -> int:
    """Run everything, whatever is found on the way."""
    parser = argparse.ArgumentParser(description="atheris on every reader of foreign bytes, then schemathesis")
    parser.add_argument("--seconds", type=int, default=120, help="for each target")
    parser.add_argument("--examples", type=int, default=100, help="requests per operation and phase")
    options = parser.parse_args()
    good = [run(target, options.seconds) for target in TARGETS]
    command = [sys.executable, str(HERE / "rest.py"), "--examples", str(options.examples)]
    good.append(subprocess.run(command, check=False).returncode == 0)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Where a system's process runs: nestvec's own Python, or a virtual environment with only numpy and the peer.

`scann` and `scann-core` are both imported as `scann`, so that no one environment can hold every peer.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nestvec.benchmarks.systems import System
from nestvec.errors import NestvecError


def python_of(system: System, folder: Path) -> Path:
    """The interpreter that can run `system`: its environment under `folder`, else this one if it has the packages.

    Raises NestvecError, with the command that helps, where neither is there.
    """
    made = _interpreter(folder / system.environment)
    if not system.ours and made.exists():
        return made
    if all(map(_installed, system.packages)):
        return Path(sys.executable)
    raise NestvecError(
        f"{system.name} needs {', '.join(system.packages)} in an environment of its own; make it with: "
        f"nestvec bench --setup-peers --systems {system.name} --envs {folder}"
    )


def set_up(systems: Sequence[System], folder: Path, log: Callable[[str], None]) -> None:
    """Make the environments that `systems` need and `folder` lacks, with pip.

    Raises NestvecError, with pip's last words, where a package cannot be installed; what was made half is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    missing = (each for each in systems if not all(map(_installed, each.packages)))
    for name, packages in sorted({each.environment: each.packages for each in missing}.items()):
        target = folder / name
        if _interpreter(target).exists():
            log(f"{target}: already there")
            continue
        log(f"{target}: installing numpy, {', '.join(packages)}")
        _run(name, [sys.executable, "-m", "venv", "--clear", str(target)])
        pip = [str(_interpreter(target)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        try:
            _run(name, [*pip, "numpy", *packages])
        except NestvecError:
            _interpreter(target).unlink()
            raise


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise NestvecError(f"environment {name!r} could not be made: {words[-1] if words else 'no message'}")


def _interpreter(environment: Path) -> Path:
    return environment / "bin" / "python"


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True

"""What holds for all tests: compiled modules are kept. Hundreds of processes are started, and in an environment that
forbids writing them (PYTHONDONTWRITEBYTECODE, as images of containers do) each would compile all of nestvec anew."""

from __future__ import annotations

import os
import sys

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

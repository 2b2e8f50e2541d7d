"""The examples run as they stand: no warning, no traceback, and they print what they are there to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHOWN = {
    "01_search_text.py": r"unpack a zip archive\n(.*\n)?  0\.\d+  \S*unpack_archive",
    "02_own_vectors.py": r"(asked for 0\.\d+: soar, estimate 0\.\d+, .*\n){3}asked for 0\.95, measured (0\.9[4-9]|1)",
    "03_filters_and_scroll.py": r"'(sub|moby)', '(sub|moby)'\].*matching=2(.*\n)+deleted: 2\nleft: 3\n",
    "04_hybrid.py": r"bm25     \['e2077', 'codes'\]\nhybrid   \['e2077', 'codes', '\w+'\]",
    "05_client.py": r"written: 1200\n(.*\n)*.*30 squared is 900(.*\n)+all: 1200\nstopped with 0\n",
    "06_reindex_without_downtime.py": r"docs is now docs-2\n\['json'\]\nrestored 3\ndocs is now docs-1",
}


def test_every_example_is_checked() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.suffix == ".py") == sorted(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_and_shows_its_idea(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not re.search("Traceback|Warning", done.stderr), done.stderr
    assert re.search(SHOWN[name], done.stdout), done.stdout
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_is_short_and_uses_public_names_only(name: str) -> None:
    source = (EXAMPLES / name).read_text()
    assert len(source.splitlines()) <= 40
    imported = re.findall(r"^(?:from|import) (nestvec[\w.]*)", source, re.M)
    assert imported
    assert set(imported) == {"nestvec"}

"""S4, S8, S11: what our own code never does, read from its source."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import nestvec
from nestvec.engine.storage.catalog import Catalog

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "engine", "index", "nestvec", "server")
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle", "telnetlib", "ftplib", "sqlite3"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "torch.load", "torch.save", "tarfile.open",
    "shutil.unpack_archive", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp",
}  # fmt: skip


def sources() -> Iterator[Path]:
    """Every file of ours that is installed; links to the same folders are not followed twice."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                yield path


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that may not be there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names if one.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in wrong_call(node))


def wrong_call(node: ast.Call) -> Iterator[str]:
    name, given = dotted(node.func), {word.arg: word.value for word in node.keywords}
    if name in FORBIDDEN_CALLS or name.endswith((".extractall", ".enable_load_extension", ".load_extension")):
        yield name
    if name in ("np.load", "numpy.load"):
        allowed = given.get("allow_pickle")
        if not (isinstance(allowed, ast.Constant) and allowed.value is False):
            yield "np.load without allow_pickle=False"
    shell = given.get("shell")
    if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
        yield f"{name}(shell=...)"


def test_nothing_of_ours_unpickles_evaluates_or_starts_a_shell() -> None:
    read = list(sources())
    assert len(read) > 150
    found = {
        (str(path.relative_to(ROOT)), line, what) for path in read for line, what in faults(ast.parse(path.read_text()))
    }
    assert not found, sorted(found)


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from marshal import loads", "eval('1')", "import numpy as np; np.load('x')",
     "np.load('x', allow_pickle=True)", "subprocess.run('x', shell=True)", "t.extractall('.')", "torch.load('x')",
     "exec(code)", "connection.enable_load_extension(True)", "yaml.load(text)"],
)  # fmt: skip
def test_the_reader_of_the_source_sees_what_it_should(line: str) -> None:
    assert list(faults(ast.parse(line)))


def test_bandit_finds_nothing_of_medium_severity() -> None:
    bandit = shutil.which("bandit", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if bandit is None:
        pytest.skip("bandit is in the extra 'audit': make audit")
    done = subprocess.run([bandit, "-q", "-ll", "-r", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_sql_of_a_stranger_runs_nowhere(tmp_path: Path) -> None:
    """S11: schemas are not trusted, extensions cannot be loaded, and readers cannot write."""
    with nestvec.open(tmp_path / "db") as database:
        database.create_collection("c", dims=2)
    held = Catalog(tmp_path / "db" / "collections" / "000001" / "catalog.sqlite")
    try:
        with held.read() as connection:
            assert connection.execute("PRAGMA trusted_schema").get == 0
            assert connection.execute("PRAGMA query_only").get == 1
            with pytest.raises(apsw.SQLError):
                connection.execute("SELECT load_extension('x')")
            with pytest.raises(apsw.ReadOnlyError):
                connection.execute("DELETE FROM record")
        with held.write() as connection:
            assert connection.execute("PRAGMA trusted_schema").get == 0
            assert connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, -1) == 1
            with pytest.raises(apsw.SQLError):
                connection.execute("SELECT load_extension('x')")
    finally:
        held.close()

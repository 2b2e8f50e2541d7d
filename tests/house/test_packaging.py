"""The house's guards: what is on disk, what is declared and what is installed are the same."""

from __future__ import annotations

import importlib
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nestvec

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("nestvec", "engine", "index", "server", "benchmarks")


@contextmanager
def without_the_train_extra(name: str) -> Iterator[None]:
    """What trains needs torch; nothing else may."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch" or not name.startswith("nestvec.train."):
            raise


def packages_on_disk() -> set[str]:
    found = set()
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            found.add(".".join(parts if parts[0] == "nestvec" else ("nestvec", *parts)))
    return found


def test_the_declared_packages_are_the_folders() -> None:
    declared = set(PROJECT["tool"]["setuptools"]["packages"])
    assert declared == packages_on_disk()
    assert declared == set(PROJECT["tool"]["setuptools"]["package-dir"])


def test_the_links_are_relative_and_point_at_the_folders() -> None:
    for folder in FOLDERS[1:]:
        link = ROOT / "nestvec" / folder
        assert link.is_symlink(), f"{link} must be a link"
        assert str(link.readlink()) == f"../{folder}"


def test_every_module_imports() -> None:
    names = [m.name for m in pkgutil.walk_packages(nestvec.__path__, "nestvec.") if not m.name.endswith("__main__")]
    assert len(names) > 20
    for name in names:
        with without_the_train_extra(name):
            importlib.import_module(name)


def test_the_public_names_are_all_of_them_and_sorted() -> None:
    assert list(nestvec.__all__) == sorted(nestvec.__all__)
    for name in nestvec.__all__:
        assert getattr(nestvec, name) is not None


def test_only_files_py_and_its_disk_create_sync_or_rename() -> None:
    banned = re.compile(
        r"os\.(rename|replace|fsync|fdatasync|mkdir|makedirs|unlink|rmdir)\(|\.(rename|mkdir|rmdir|unlink)\(|shutil\."
    )
    offenders = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "engine").rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in ("engine/storage/files.py", "engine/storage/disk.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line)
    ]
    assert offenders == []


def test_no_file_outgrows_its_reader() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
        and (count := len(path.read_text().splitlines())) > 400
    }
    assert long == {}

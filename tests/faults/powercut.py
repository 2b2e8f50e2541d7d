"""A disk that knows what a power cut would leave.

`Recorder` stands in place of the disk: it does what it is told on real files and notes every call. From the notes any
moment can be gone back to: names and bytes that were not synced by then may be there, or not, or in part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from random import Random

from nestvec.engine.storage.disk import Disk

BYTES = ("drop", "keep", "one", "half", "nearly", "zero", "half zero")
"""What may become of bytes that were written and not synced."""
_EVERY_SUBSET = 6
Change = tuple["Directory", str, "Node | None"]


@dataclass(eq=False)
class File:
    """The bytes that are durable and those that programs see. `base`: an unchanged file of the beginning."""

    durable: bytes = b""
    current: bytes = b""
    base: Path | None = None


@dataclass(eq=False)
class Directory:
    durable: dict[str, Node] = field(default_factory=dict)
    current: dict[str, Node] = field(default_factory=dict)


Node = File | Directory


@dataclass
class Moment:
    """After one call: its name, and SQLite's files as they were (their own durability is SQLite's to test)."""

    call: tuple[str, ...]
    data: bytes
    catalogs: dict[str, bytes]


class Recorder(Disk):
    """`lying`: calls that it says it made, and does not make durable."""

    def __init__(self, root: Path, lying: str = "") -> None:
        self.root, self.lying = root, lying
        self.moments: list[Moment] = []
        self._names: dict[int, str] = {}

    def _note(self, *call: str, data: bytes = b"") -> None:
        if call[0] != self.lying:
            self.moments.append(Moment(call, data, self.catalogs()))

    def catalogs(self) -> dict[str, bytes]:
        """SQLite's files now."""
        found = [path for path in self.root.rglob("*.sqlite*") if not path.name.endswith("-shm")]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def create(self, path: Path) -> int:
        self._note("before")
        descriptor = super().create(path)
        self._names[descriptor] = self._name(path)
        self._note("create", self._name(path))
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        written = super().write(descriptor, data)
        self._note("write", self._names[descriptor], data=bytes(data[:written]))
        return written

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        self._note("fsync", self._names[descriptor])

    def make(self, directory: Path) -> None:
        self._note("before")
        super().make(directory)
        self._note("make", self._name(directory))

    def rename(self, source: Path, target: Path) -> None:
        self._note("before")
        super().rename(source, target)
        self._note("rename", self._name(source), self._name(target))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self._note("link", self._name(source), self._name(target))

    def unlink(self, path: Path) -> None:
        self._note("before")
        super().unlink(path)
        self._note("unlink", self._name(path))

    def remove(self, directory: Path) -> None:
        self._note("before")
        existed = directory.is_dir()
        super().remove(directory)
        if existed:
            self._note("unlink", self._name(directory))

    def fsync_directory(self, path: Path) -> None:
        super().fsync_directory(path)
        self._note("fsync_directory", self._name(path))


class Model:
    """Replays moments over a tree that was durable at the beginning."""

    def __init__(self, base: Path) -> None:
        self.top = self._read(base)
        self.pending: list[list[Change]] = []
        self.dirty: dict[File, None] = {}

    def _read(self, path: Path) -> Directory:
        here = Directory()
        for entry in path.iterdir():
            here.durable[entry.name] = self._read(entry) if entry.is_dir() else File(base=entry)
        here.current = dict(here.durable)
        return here

    def _find(self, name: str) -> Node:
        here: Node = self.top
        for part in Path(name).parts:
            assert isinstance(here, Directory)
            here = here.current[part]
        return here

    def _parent(self, name: str) -> tuple[Directory, str]:
        path = Path(name)
        parent = self._find(str(path.parent)) if path.parent.parts else self.top
        assert isinstance(parent, Directory)
        return parent, path.name

    def _change(self, *changes: Change) -> None:
        for directory, name, node in changes:
            if node is None:
                directory.current.pop(name, None)
            else:
                directory.current[name] = node
        self.pending.append(list(changes))

    def replay(self, moment: Moment) -> None:
        """One more call was made."""
        call, *names = moment.call
        if call == "create":
            self._change((*self._parent(names[0]), File()))
        elif call == "make":
            self._change((*self._parent(names[0]), Directory()))
        elif call == "write":
            file = self._find(names[0])
            assert isinstance(file, File)
            file.current += moment.data
            self.dirty[file] = None
        elif call == "fsync":
            file = self._find(names[0])
            assert isinstance(file, File)
            file.durable = file.current
            self.dirty.pop(file, None)
        elif call == "rename":
            self._change((*self._parent(names[0]), None), (*self._parent(names[1]), self._find(names[0])))
        elif call == "link":
            self._change((*self._parent(names[1]), self._find(names[0])))
        elif call == "unlink":
            self._change((*self._parent(names[0]), None))
        elif call == "fsync_directory":
            self._sync(self._find(names[0]))

    def _sync(self, directory: Node) -> None:
        """What touches the directory becomes durable; a rename with both its halves, as in a file system's journal."""
        for changes in [changes for changes in self.pending if any(one[0] is directory for one in changes)]:
            self.pending.remove(changes)
            for home, name, node in changes:
                _apply(home.durable, name, node)

    def cuts(self) -> Iterator[tuple[tuple[bool, ...], str]]:
        """Which of the pending changes of names a power cut keeps, and what it makes of bytes that were not synced.

        Every subset of a few changes; of many those that keep or lose one, those of a journal, and 100 at random.
        """
        count = len(self.pending)
        if count <= _EVERY_SUBSET:
            kept = set(product((False, True), repeat=count))
        else:
            rng = Random(count)
            kept = {tuple(rng.random() < 0.5 for _ in range(count)) for _ in range(100)}
            kept |= {(False,) * count, (True,) * count}
            for i in range(count):
                kept.add(tuple(j <= i for j in range(count)))
                kept.add(tuple(j == i for j in range(count)))
                kept.add(tuple(j != i for j in range(count)))
        for choice in sorted(kept):
            for bytes_ in BYTES if self.dirty else ("drop",):
                yield choice, bytes_

    def leave(self, target: Path, kept: tuple[bool, ...], bytes_: str, catalogs: dict[str, bytes]) -> str:
        """Make in `target` what is left after the cut; a signature of it."""
        names: dict[Directory, dict[str, Node]] = {}
        for keep, changes in zip(kept, self.pending, strict=True):
            for home, name, node in changes if keep else ():
                _apply(names.setdefault(home, dict(home.durable)), name, node)
        lines: list[str] = []
        self._write(self.top, target, Path(), names, (bytes_, catalogs), lines)
        return "\n".join(sorted(lines))

    def _write(
        self,
        here: Directory,
        target: Path,
        at: Path,
        names: dict[Directory, dict[str, Node]],
        how: tuple[str, dict[str, bytes]],
        lines: list[str],
    ) -> None:
        (target / at).mkdir()
        for name, node in names.get(here, here.durable).items():
            where = at / name
            if isinstance(node, Directory):
                lines.append(f"{where}/")
                self._write(node, target, where, names, how, lines)
            elif ".sqlite" not in name:
                lines.append(f"{where} {self._bytes(node, target / where, how[0])}")
        for name, data in how[1].items():
            if Path(name).parent == at and (here.durable | names.get(here, {})).keys() & {
                Path(name).name.split("-")[0]
            }:
                (target / name).write_bytes(data)
                lines.append(f"{name} {hash(data)}")
        for name, node in names.get(here, here.durable).items():  # a renaming that was lost: the file as it was before
            if isinstance(node, File) and ".sqlite" in name and node.base and not (target / at / name).exists():
                shutil.copy(node.base, target / at / name)

    def _bytes(self, file: File, target: Path, how: str) -> str:
        if file.base is not None:
            os.link(file.base, target)
            return "base"
        data = file.durable
        if file in self.dirty and how != "drop":
            tail = file.current[len(data) :]
            half = len(tail) // 2
            tail = {
                "keep": tail,
                "one": tail[:1],
                "half": tail[:half],
                "nearly": tail[:-1],
                "zero": bytes(len(tail)),
                "half zero": tail[:half] + bytes(len(tail) - half),
            }[how]
            data += tail
        target.write_bytes(data)
        return str(hash(data))


def _apply(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def states(base: Path, moments: list[Moment], work: Path, most: int) -> Iterator[tuple[tuple[str, ...], Path]]:
    """(the last call, a directory as a power cut after it could leave it); each different state once, evenly chosen
    where there are more than `most`."""
    seen: set[str] = set()
    total = count(base, moments)
    step, number = max(1.0, total / most), 0
    wanted = 0.0
    model = Model(base)
    for moment in moments:
        model.replay(moment)
        for kept, bytes_ in model.cuts():
            number += 1
            if number < wanted and number < total:
                continue
            wanted += step
            target = work / "state"
            signature = model.leave(target, kept, bytes_, moment.catalogs)
            if signature not in seen:
                seen.add(signature)
                yield (*moment.call, str(kept), bytes_), target
            shutil.rmtree(target)


def count(base: Path, moments: list[Moment]) -> int:
    """How many cuts there are."""
    model, total = Model(base), 0
    for moment in moments:
        model.replay(moment)
        total += sum(1 for _ in model.cuts())
    return total

"""A snapshot's file: one header, a manifest of its members, their bytes, and a digest of it all.

    16 bytes  "nestvec snapshot"
    u32       format version
    u32       crc32c of the manifest
    u64       length of the manifest
    manifest  JSON: facts, and name, size and crc32c of every member
    members   their bytes, in that order
    32 bytes  blake2b of everything before

All numbers are little-endian. A member's name is one that nestvec gives its own files, and never a path elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from crc32c import crc32c

from nestvec.engine.progress import Progress
from nestvec.engine.storage import files
from nestvec.engine.storage.catalog import FILE_NAME
from nestvec.errors import Damaged, InvalidInput

FOLDER, SUFFIX = "snapshots", ".nvs"
NAME = re.compile(r"(?P<collection>[a-z0-9][a-z0-9_-]{0,62})-(?P<time>[0-9]{8}T[0-9]{9}Z)")
VERSION = 1
_MAGIC = b"nestvec snapshot"
_HEAD = struct.Struct("<16sIIQ")
_DIGEST_BYTES = 32
_MAX_MANIFEST, _MAX_MEMBERS = 64 << 20, 100_000
_PIECE = 1 << 20
_NUMBER = r"[1-9][0-9]{0,17}"
_MEMBER = re.compile(
    rf"catalog\.sqlite|(?:segments/{_NUMBER}|generations/{_NUMBER}|postings/{_NUMBER}-{_NUMBER})"
    r"/[a-z][a-z0-9_]{0,63}\.(?:bin|json)"
)


def snapshot_files(root: Path) -> list[Path]:
    """The files of a database's snapshots, by name. Only names that we give are looked at."""
    home = root / FOLDER
    return sorted(path for path in home.glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem)) if home.is_dir() else []


@dataclass(frozen=True)
class Member:
    """One file: its name inside the collection's directory, its size in bytes, its crc32c."""

    name: str
    size: int
    crc32c: int


@dataclass(frozen=True)
class Archive:
    """A snapshot's file whose header and manifest were read and checked; `extract` checks the rest."""

    path: Path
    facts: dict[str, Any]
    members: tuple[Member, ...]
    size: int

    @property
    def _start(self) -> int:
        return self.size - _DIGEST_BYTES - sum(member.size for member in self.members)


def write_archive(path: Path, facts: dict[str, Any], members: Sequence[Member], root: Path, progress: Progress) -> int:
    """Write a new file of the members found under `root`, each compared with its checksum; its size in bytes.

    Progress is told as stage "write", in bytes. Raises Damaged naming the member that is not what it should be.
    """
    manifest = json.dumps({"facts": facts, "members": [asdict(member) for member in members]}).encode()
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    total = sum(member.size for member in members)
    writer = files.FileWriter(path)
    try:
        done = 0
        for piece in (_HEAD.pack(_MAGIC, VERSION, crc32c(manifest), len(manifest)), manifest):
            writer.append(piece)
            digest.update(piece)
        for member in members:
            with (root / member.name).open("rb") as file:
                for piece in _checked(file, member, root / member.name):
                    writer.append(piece)
                    digest.update(piece)
                    done += len(piece)
                    progress("write", done, total)
        writer.append(digest.digest())
        return writer.finish().size
    finally:
        writer.close()


def open_archive(path: Path) -> Archive:
    """Read the header and the manifest.

    Raises InvalidInput for a file that is no snapshot, or one of another version; Damaged where it is not whole.
    """
    if path.is_symlink() or not path.is_file():
        raise InvalidInput(f"{path}: is not a regular file")
    size = path.stat().st_size
    with path.open("rb") as file:
        magic, version, crc, length = _head(path, file.read(_HEAD.size))
        if magic != _MAGIC:
            raise InvalidInput(f"{path}: is no nestvec snapshot")
        if version != VERSION:
            raise InvalidInput(
                f"{path}: is a snapshot of version {version}; this nestvec reads version {VERSION}: use the release "
                "that wrote it"
            )
        manifest = file.read(length) if length <= min(size, _MAX_MANIFEST) else b""
    if len(manifest) != length or crc32c(manifest) != crc:
        raise Damaged(str(path), "the manifest fails its checksum, or is cut off")
    facts, members = _parse(path, manifest)
    expected = _HEAD.size + length + sum(member.size for member in members) + _DIGEST_BYTES
    if size != expected:
        raise Damaged(str(path), f"has {size} bytes, its manifest says {expected}")
    return Archive(path, facts, members, size)


def verify_archive(archive: Archive, progress: Progress) -> None:
    """Read every byte and compare it with its checksums. Raises Damaged naming the member."""
    for _ in _read(archive, progress):
        pass


def extract(archive: Archive, directory: Path, progress: Progress) -> None:
    """Write every member durably under `directory`, compared with its checksum on the way.

    Progress is told as stage "copy", in bytes. Raises Damaged naming the member that is damaged; what was written is
    then worthless, as the digest of the whole is the last thing compared.
    """
    writer: files.FileWriter | None = None
    folders: set[Path] = {directory}
    try:
        for member, piece in _read(archive, progress):
            if piece is None:
                if writer is not None:
                    writer.finish()
                target = directory / member.name
                folders.add(files.new_directory(target.parent, parents=True))
                writer = files.FileWriter(target)
            elif writer is not None:
                writer.append(piece)
        if writer is not None:
            writer.finish()
    finally:
        if writer is not None:
            writer.close()
    for folder in folders:
        files.fsync_directory(folder)


def _head(path: Path, data: bytes) -> tuple[bytes, int, int, int]:
    if len(data) < _HEAD.size:
        raise InvalidInput(f"{path}: is no nestvec snapshot: it has only {len(data)} bytes")
    magic, version, crc, length = _HEAD.unpack(data)
    return magic, version, crc, length


def _parse(path: Path, manifest: bytes) -> tuple[dict[str, Any], tuple[Member, ...]]:
    """Whatever a foreign manifest says, only names that we give ourselves come out."""
    try:
        content = json.loads(manifest)
        members = tuple(_member(each) for each in content["members"])
        facts = dict(content["facts"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(str(path), f"the manifest cannot be read: {error!r:.200}") from None
    names = [member.name for member in members]
    strange = next((name for name in names if not _MEMBER.fullmatch(name)), None)
    if strange is not None:
        raise Damaged(str(path), f"lists a member {strange!r:.100}, which no snapshot of ours has")
    if len(set(names)) != len(names) or len(names) > _MAX_MEMBERS or FILE_NAME not in names:
        raise Damaged(str(path), f"lists a member twice, or too many, or no {FILE_NAME}")
    if any(member.size < 0 for member in members):
        raise Damaged(str(path), "lists a member of negative size")
    return facts, members


def _member(given: dict[str, Any]) -> Member:
    name, size, crc = given["name"], given["size"], given["crc32c"]
    if not isinstance(name, str) or type(size) is not int or type(crc) is not int:
        raise TypeError("a member has a name, and whole numbers for its size and checksum")
    return Member(name, size, crc)


def _read(archive: Archive, progress: Progress) -> Iterator[tuple[Member, bytes | None]]:
    """Each member, first with None, then with its pieces; at the end the digest is compared."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    done, total = 0, archive.size
    with archive.path.open("rb") as file:
        digest.update(file.read(archive._start))
        for member in archive.members:
            yield member, None
            for piece in _checked(file, member, archive.path):
                digest.update(piece)
                done += len(piece)
                yield member, piece
                progress("copy", done, total)
        if file.read(_DIGEST_BYTES) != digest.digest():
            raise Damaged(str(archive.path), "the digest of the whole file does not match")


def _checked(file: BinaryIO, member: Member, where: Path) -> Iterator[bytes]:
    """The member's bytes from here on, in pieces. Raises Damaged at its end where they are not the ones listed."""
    left, crc = member.size, 0
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise Damaged(str(where), f"{member.name} is cut off {left} bytes before its end")
        left -= len(piece)
        crc = crc32c(piece, crc)
        yield piece
    if crc != member.crc32c:
        raise Damaged(str(where), f"{member.name} has crc32c {crc:#010x}, the manifest says {member.crc32c:#010x}")

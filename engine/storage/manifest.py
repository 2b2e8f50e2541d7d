"""`manifest.json` of a directory of files: what it says, read as if a stranger had written it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestvec.errors import Damaged

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_DTYPES = frozenset({"bool", "uint8", "int8", "uint16", "uint32", "int32", "int64", "float16", "float32", "float64"})


@dataclass(frozen=True)
class FileEntry:
    """What a manifest knows about one file: `crc32c` of the whole and of every MiB."""

    name: str
    size: int
    crc32c: int
    blocks: list[int]


@dataclass(frozen=True)
class Manifest:
    """What kind of directory this is, its facts, and its files."""

    kind: str
    meta: dict[str, Any]
    files: dict[str, FileEntry]


def parse(path: Path, data: bytes, kind: str) -> Manifest:
    """The manifest in these bytes. Raises Damaged for another kind or version, and for whatever we do not write."""
    try:
        content = json.loads(data)
        if (content["format"], content["version"]) != (f"nestvec-{kind}", FORMAT_VERSION):
            raise Damaged(
                str(path),
                f"is {content['format']!r:.100} version {content['version']!r:.20}; this nestvec reads version "
                f"{FORMAT_VERSION} of nestvec-{kind}: use the release that wrote it",
            )
        files = {entry.name: entry for entry in (_entry(item) for item in content["files"])}
        if not isinstance(content["meta"], dict):
            raise TypeError("meta is no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(str(path), f"cannot be read: {error!r:.200}") from None
    strange = next((name for name in files if Path(name).name != name or "\0" in name), None)
    if strange is not None:
        raise Damaged(str(path), f"lists {strange!r:.100}, which is no plain file name")
    return Manifest(kind, content["meta"], files)


def _entry(item: dict[str, Any]) -> FileEntry:
    entry = FileEntry(**item)
    if not isinstance(entry.name, str) or not isinstance(entry.blocks, list):
        raise TypeError("an entry has a name and a list of blocks")
    if any(type(number) is not int or number < 0 for number in (entry.size, entry.crc32c, *entry.blocks)):
        raise TypeError("size and checksums are whole numbers")
    return entry


def described(path: Path, meta: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Array's name -> (dtype, shape), from the facts of a directory of arrays. Raises Damaged."""
    try:
        found = {name: (each["dtype"], tuple(each["shape"])) for name, each in meta["arrays"].items()}
        if not isinstance(meta["facts"], dict):
            raise TypeError("facts is no object")
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(str(path), f"does not describe its arrays: {error!r:.200}") from None
    return found


def check_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.dtype[Any]:
    """The dtype of an array that fills the file `path` exactly. Raises Damaged where it does not."""
    known = isinstance(dtype, str) and dtype in _DTYPES
    whole = all(type(size) is int and size >= 0 for size in shape)
    wanted = math.prod(shape) * np.dtype(dtype).itemsize if known and whole else -1
    size = path.stat().st_size
    if wanted != size or len(shape) > 8:
        raise Damaged(str(path), f"has {size} bytes, which is no {dtype!r:.20} of shape {shape!r:.100}")
    return np.dtype(dtype)

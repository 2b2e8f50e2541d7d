"""What the fuzz targets share: a target takes bytes and must end in success or in one of the documented errors.

Each target is a script for atheris, `python tests/fuzz/filters.py -max_total_time=120`, whose options are libFuzzer's,
and a module whose `seeds` and `check` the tests try without atheris. A seed is a case of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from crc32c import crc32c

from nestvec.errors import NestvecError

MEMORY_MB = 1024
SECONDS = 20
_CUT = b"\n\0"


def fuzz(check: Callable[[bytes], bool], seeds: Iterable[bytes]) -> None:
    """Run libFuzzer on a target until its time is over or it has found something."""
    import atheris  # an extra of its own

    with TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / f"seed{number}").write_bytes(seed)
        bounds = [f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS}", "-max_len=65536"]
        atheris.Setup([sys.argv[0], *bounds, *sys.argv[1:], folder], lambda data: check(data) and None)
        atheris.Fuzz()


def instrumented() -> Any:  # noqa: ANN401 - a context manager of atheris, or one that does nothing
    """Around the imports of what is fuzzed: lets the fuzzer see which lines an input reaches."""
    program = Path(sys.argv[0])
    if program.suffix == ".py" and program.resolve().parent == Path(__file__).resolve().parent:
        import atheris

        return atheris.instrument_imports(include=["nestvec.engine", "nestvec.server", "nestvec.index"])
    from contextlib import nullcontext

    return nullcontext()


def allowed(work: Callable[[], object]) -> bool:
    """Whether it succeeds; an error of ours is none."""
    try:
        work()
    except NestvecError:
        return False
    return True


def scratch() -> Path:
    """A folder for this process, in memory where there is one. libFuzzer ends without a goodbye, so who starts it may
    name the folder's parent and remove that."""
    memory = Path(os.environ.get("NESTVEC_FUZZ_HOME", "/dev/shm"))
    path = Path(mkdtemp(prefix="nestvec-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def pack(directory: Path) -> bytes:
    """A directory of files as one input: its manifest, then the bytes of the files that it lists."""
    manifest = json.loads((directory / "manifest.json").read_bytes())
    for entry in manifest["files"]:
        del entry["crc32c"], entry["blocks"]
    blob = b"".join((directory / entry["name"]).read_bytes() for entry in manifest["files"])
    return json.dumps(manifest).encode() + _CUT + blob


def unpack(data: bytes, directory: Path) -> int:
    """Write an input back as a directory; the crc32c of its manifest.

    Sizes and checksums are made right wherever that can be: what a forger would do, and the only way past them.
    """
    for file in directory.iterdir():
        file.unlink()
    text, _, blob = data.partition(_CUT)
    try:
        manifest = json.loads(text)
        entries = [entry for entry in manifest["files"] if _plain(entry.get("name"))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        entries, manifest = [], None
    for entry in entries:
        size = entry["size"] if type(entry.get("size")) is int else 0
        content, blob = blob[: max(0, size)], blob[max(0, size) :]
        (directory / entry["name"]).write_bytes(content)
        blocks = [crc32c(content[at : at + (1 << 20)]) for at in range(0, len(content), 1 << 20)]
        entry |= {"size": len(content), "crc32c": crc32c(content), "blocks": blocks}
    whole = text if manifest is None else json.dumps(manifest).encode()
    (directory / "manifest.json").write_bytes(whole)
    return crc32c(whole)


def _plain(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[a-z0-9_]{1,40}(\.[a-z]{1,8})?", name) is not None

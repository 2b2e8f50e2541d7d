"""The systems under test: where each one's code is, what it needs installed, and how it can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nestvec.errors import InvalidInput

Setting = dict[str, Any]
MODES = ("single", "batch")


@dataclass(frozen=True)
class Context:
    """How queries are asked: "single", one by one from Python, or "batch", 1,000 a call; with how many threads."""

    mode: str
    threads: int

    def __str__(self) -> str:
        return f"{self.mode}:{self.threads}"


def parse_context(text: str) -> Context:
    """`"batch:2"` as a context; `"single"` means one thread.

    Raises InvalidInput for anything else.
    """
    mode, _, threads = text.partition(":")
    if mode not in MODES or not (threads or "1").isdecimal() or int(threads or 1) < 1:
        raise InvalidInput(f"a mode is single or batch and a number of threads, such as batch:2; got {text!r}")
    return Context(mode, int(threads or 1))


@dataclass(frozen=True)
class System:
    """One way to search vectors.

    `file` and `kind` are the module under peers/ and its class. `environment` names the virtual environment that holds
    `packages` and nothing else; "" is nestvec's own. `threaded`: a batch may use several threads.
    """

    name: str
    file: str
    kind: str
    packages: tuple[str, ...]
    environment: str = ""
    threaded: bool = True

    @property
    def ours(self) -> bool:
        """Whether this is nestvec itself rather than a peer."""
        return not self.environment

    def can(self, context: Context) -> bool:
        """Whether this system can be asked so."""
        return self.threaded or context.threads == 1


_NESTVEC = ("nestvec", "faiss-cpu")
_ALL = (
    System("exact", "nestvec_peer.py", "Exact", _NESTVEC, threaded=False),
    System("soar", "nestvec_peer.py", "Soar", _NESTVEC, threaded=False),
    System("soar-reader", "nestvec_peer.py", "SoarReader", _NESTVEC),
    System("scann", "scann_peer.py", "Scann", ("scann",), "scann"),
    System("scann-core", "scann_peer.py", "Scann", ("scann-core",), "scann-core"),
    System("faiss-prefix-ivfpqfs", "faiss_peer.py", "PrefixPq", ("faiss-cpu",), "faiss"),
    System("faiss-rabitq-fs", "faiss_peer.py", "RaBitQ", ("faiss-cpu",), "faiss"),
    System("faiss-hnsw-sq8", "faiss_peer.py", "HnswSq8", ("faiss-cpu",), "faiss"),
    System("usearch", "usearch_peer.py", "Usearch", ("usearch",), "usearch"),
    System("hnswlib", "hnswlib_peer.py", "Hnswlib", ("hnswlib",), "hnswlib"),
)
SYSTEMS = {system.name: system for system in _ALL}


def pick(names: Sequence[str]) -> list[System]:
    """The systems called `names`.

    Raises InvalidInput, with the known names, for an unknown or repeated one and for none.
    """
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"--systems needs different names; got {', '.join(names) or 'none'}")
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise InvalidInput(f"unknown system {unknown[0]!r}; known: {', '.join(SYSTEMS)}")
    return [SYSTEMS[name] for name in names]

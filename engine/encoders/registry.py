"""Finds encoders by name: those that ship here, and installed packages' (entry points of `nestvec.encoders`).

A plain name, such as `static`, is loaded by `load() -> Encoder`. A name with a colon, such as `openai:URL#MODEL`, names
a kind and what the kind's `load(spec) -> Encoder` needs to know: all behind the first colon.
"""

from __future__ import annotations

import inspect
import threading
from collections import defaultdict
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from nestvec.engine.encoders.fingerprint import same_fingerprint
from nestvec.engine.encoders.protocol import Encoder
from nestvec.errors import EncoderMismatch, InvalidInput, NotFound

GROUP = "nestvec.encoders"
FORMS = {"openai": "openai:URL#MODEL", "sentence-transformers": "sentence-transformers:NAME-OR-PATH"}
"""The kinds that ship here and need more than a name, and how a name of each is written."""
TRAINED = "static:FOLDER"
"""How an encoder is named that `nestvec train` made; `static` alone is the default one."""

_SHIPPED = {
    "openai": "nestvec.engine.encoders.openai:load",
    "sentence-transformers": "nestvec.engine.encoders.sentence_transformers:load",
    "static": "nestvec.engine.encoders.static:load",
}
_MEMBERS = ("name", "dims", "granularities", "fingerprint", "encode_queries", "encode_documents")
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def names() -> list[str]:
    """The plain names of all installed encoders, sorted; `FORMS` has the kinds that need more than a name."""
    return sorted(set(_entries()) - set(FORMS))


def load_encoder(name: str) -> Encoder:
    """The encoder called `name`, loaded once per process.

    Raises NotFound listing what there is, InvalidInput if the name lacks something or the package's object is no
    encoder, MissingDependency, and EncoderUnavailable where an encoder is reached over a network and does not answer.
    """
    kind = name.partition(":")[0]
    if kind not in _entries():
        there = ", ".join([*names(), TRAINED, *FORMS.values()])
        raise NotFound(f"no encoder {kind!r} is installed; there is: {there}")
    with _locks[name]:  # two threads that want it at once load it once; others do not wait for its network
        return _load(name)


def load_same(name: str, fingerprint: str | None, collection: str) -> Encoder:
    """The encoder called `name`, if it still makes the vectors that `collection` holds.

    Raises EncoderMismatch where its fingerprint is another, and what `load_encoder` raises.
    """
    encoder = load_encoder(name)
    if not same_fingerprint(encoder.fingerprint, fingerprint):
        raise EncoderMismatch(
            f"collection {collection!r} was made with encoder {name!r} {fingerprint}; installed is {encoder.name!r} "
            f"{encoder.fingerprint}"
        )
    return encoder


@cache
def _load(name: str) -> Encoder:
    kind, colon, spec = name.partition(":")
    entry = _entries()[kind]
    if not colon and kind in FORMS:
        raise InvalidInput(f"encoder {kind!r} needs more than its name: {FORMS[kind]}")
    encoder = entry.load()(spec) if colon else entry.load()()
    _check_members(entry.value, encoder)
    return cast(Encoder, encoder)


def _check_members(source: str, encoder: object) -> None:
    # Not isinstance: before Python 3.12 that reads every property, and a granularity may have to be measured.
    missing = [name for name in _MEMBERS if inspect.getattr_static(encoder, name, None) is None]
    if missing:
        raise InvalidInput(f"{source} gave a {type(encoder).__name__}, which lacks an encoder's {', '.join(missing)}")


@cache
def _entries() -> dict[str, EntryPoint]:
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    return installed | {name: EntryPoint(name, value, GROUP) for name, value in _SHIPPED.items()}

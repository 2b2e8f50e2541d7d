"""Found records as they stand in replies, encoded once: of a record that is found again only its score is new."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

import msgspec

from nestvec.engine.record import FoundRows, payload_of
from nestvec.engine.storage.catalog import StoredRecord
from nestvec.server.formats import ReplyKind

MOST_BYTES: Final = 8 * 1024 * 1024
"""Of encoded records that are kept, about."""

_EACH = 300  # bytes that Python's objects around a fragment take
_encode = {"json": msgspec.json.Encoder().encode, "msgpack": msgspec.msgpack.Encoder().encode}
_double = Struct(">Bd").pack
_FLOAT64 = 0xCB  # of msgpack's types
_NAMES = {name: _encode["msgpack"](name) for name in ("id", "score", "payload", "text")}


class _Fragment(NamedTuple):
    """A record, and a `HitReply` of it but for the number that is its score."""

    record: StoredRecord
    before: bytes
    after: bytes


class Fragments:
    """Writes found records as lists of `HitReply`. Only the event loop calls this."""

    def __init__(self, kind: ReplyKind, most_bytes: int = MOST_BYTES) -> None:
        self.kind, self._most = kind, most_bytes
        # By the identity of the record, which is held: a record that is found lately is one object (records.py).
        self._made: dict[int, _Fragment] = {}
        self._bytes = 0

    def rows(self, found: FoundRows) -> msgspec.Raw:
        """The list of hits, encoded."""
        made = self._made
        try:
            fragments = [made[id(record)] for record in found.records]
        except KeyError:
            fragments = [self._of(record) for record in found.records]
        if self.kind == "json":
            scores = _encode["json"](found.scores)[1:-1].split(b",")
            parts = [before + score + after for (_, before, after), score in zip(fragments, scores, strict=False)]
            return msgspec.Raw(b"[" + b",".join(parts) + b"]")
        parts = [
            before + _double(_FLOAT64, score) + after
            for (_, before, after), score in zip(fragments, found.scores, strict=True)
        ]
        return msgspec.Raw(_array_head(len(parts)) + b"".join(parts))

    def _of(self, record: StoredRecord) -> _Fragment:
        held = self._made.get(id(record))
        if held is not None:
            return held
        if self._bytes > self._most:
            self._made, self._bytes = {}, 0
        made = _Fragment(record, *(_json if self.kind == "json" else _msgpack)(*record))
        self._made[id(record)] = made
        self._bytes += _EACH + 2 * (len(made.before) + len(made.after))  # the record's own bytes are about as many
        return made


def _json(id: str, payload: bytes, text: str | None) -> tuple[bytes, bytes]:
    encode = _encode["json"]
    # The stored payload is JSON: nothing is decoded and encoded again.
    return b'{"id":%s,"score":' % encode(id), b',"payload":%s,"text":%s}' % (payload, encode(text))


def _msgpack(id: str, payload: bytes, text: str | None) -> tuple[bytes, bytes]:
    encode = _encode["msgpack"]
    before = bytes([0x80 | len(_NAMES)]) + _NAMES["id"] + encode(id) + _NAMES["score"]
    return before, _NAMES["payload"] + encode(payload_of(payload)) + _NAMES["text"] + encode(text)


def _array_head(count: int) -> bytes:
    """How msgpack begins an array."""
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 65536 else b"\xdd" + count.to_bytes(4, "big")

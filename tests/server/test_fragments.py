"""Fragments: lists of hits, put together from records that were encoded before, are what the structs would give."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from nestvec.engine.record import FoundRows
from nestvec.server.formats import MEDIA_TYPES, ReplyKind
from nestvec.server.fragments import Fragments
from nestvec.server.wire import HitReply

RECORDS: list[tuple[str, bytes, str | None]] = [
    (f'id "{i}" \\ é\n', json.dumps({"n": i, "deep": [{"a": None}], "é": "\u2028"}).encode(), "text\t\x01 ☃" * (i % 3))
    for i in range(40)
]
RECORDS[3] = ("no payload", b"null", None)
DECODE: dict[ReplyKind, Any] = {"json": msgspec.json.decode, "msgpack": msgspec.msgpack.decode}


def found(records: list[tuple[str, bytes, str | None]]) -> FoundRows:
    return FoundRows(records, [(-1.0) ** i * 10.0 ** (i - 20) / 3 for i in range(len(records))])


@pytest.mark.parametrize("kind", list(MEDIA_TYPES))
@pytest.mark.parametrize("count", [0, 1, 15, 16, 40])
def test_a_list_is_what_its_hits_are(kind: ReplyKind, count: int) -> None:
    fragments = Fragments(kind)
    rows = found(RECORDS[:count])
    expected = [
        HitReply(id, score, json.loads(payload), text) for (id, payload, text), score in zip(*rows, strict=True)
    ]
    for _ in range(2):  # made, then known
        assert DECODE[kind](fragments.rows(rows), type=list[HitReply]) == expected
        assert DECODE[kind](fragments.rows(rows)) == msgspec.to_builtins(expected)


@pytest.mark.parametrize("kind", list(MEDIA_TYPES))
def test_seventy_thousand_hits_are_a_list_too(kind: ReplyKind) -> None:
    rows = FoundRows(RECORDS[:1] * 70_000, [0.5] * 70_000)
    assert len(DECODE[kind](Fragments(kind).rows(rows))) == 70_000


@pytest.mark.parametrize("kind", list(MEDIA_TYPES))
def test_what_is_kept_is_bounded_and_nothing_else_changes(kind: ReplyKind) -> None:
    small, large = Fragments(kind, most_bytes=2000), Fragments(kind)
    for start in (0, 10, 20, 5, 0):
        rows = found(RECORDS[start : start + 20])
        assert bytes(small.rows(rows)) == bytes(large.rows(rows))
    assert len(small._made) < 10 < len(large._made)

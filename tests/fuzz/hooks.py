"""Loaded by schemathesis: how bodies that are no JSON are written, and what a schema cannot say."""

from __future__ import annotations

import msgspec
import schemathesis


@schemathesis.serializer("application/msgpack")
def to_msgpack(_: schemathesis.SerializationContext, value: object) -> bytes:
    """msgpack, of anything that msgpack can say."""
    return msgspec.msgpack.encode(_sayable(value))


def _sayable(value: object) -> object:
    """Integers beyond 64 bits as floats: what a client that writes msgpack would send."""
    if isinstance(value, dict):
        return {key: _sayable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_sayable(inner) for inner in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value) if abs(value) < 10**300 else 1e300
    return value


@schemathesis.serializer(
    "application/jsonl", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet", "application/x-ndjson"
)
def to_file(_: schemathesis.SerializationContext, value: object) -> bytes:
    """Bytes as they are; anything else as JSON."""
    data = getattr(value, "data", value)  # schemathesis wraps bytes in a string
    return data if isinstance(data, bytes) else msgspec.json.encode(data)


@schemathesis.deserializer("application/msgpack")
def from_msgpack(_: schemathesis.DeserializationContext, response: schemathesis.Response) -> object:
    """The answer as the document describes it: what is bin in msgpack is base64 text there."""
    return msgspec.to_builtins(msgspec.msgpack.decode(response.content))

"""JSON and msgpack: which of them a body is in, which the reply shall be in, and the way between bytes and structs."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

import msgspec
import numpy as np
from starlette.types import Scope

from nestvec.server.errors import FieldError, RequestProblem, invalid
from nestvec.server.wire import MAX_DEPTH

T = TypeVar("T")
BodyKind = Literal["json", "msgpack", "arrow"]
ReplyKind = Literal["json", "msgpack"]

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
ARROW: Final = "application/vnd.apache.arrow.stream"
_KINDS: Final[dict[str, BodyKind]] = {
    JSON: "json",
    MSGPACK: "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    ARROW: "arrow",
}
MEDIA_TYPES: Final[dict[ReplyKind, str]] = {"json": JSON, "msgpack": MSGPACK}

JSON_NULL: Final = b"null"

_FAULT = re.compile(r"(?P<message>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


class Formats(NamedTuple):
    """What a request's body is in (None: it names a type that no hot route reads), and what its reply shall be in."""

    body: BodyKind | None
    reply: ReplyKind


def formats_of(scope: Scope) -> Formats:
    """From the request's Content-Type and Accept."""
    content_type = accept = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"accept":
            accept = value
    return formats(content_type, accept)


@lru_cache(maxsize=256)
def formats(content_type: bytes, accept: bytes) -> Formats:
    """From the two headers, b"" for one that is not there."""
    kind, _, parameters = content_type.decode("latin-1").lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    body = _KINDS.get(kind.strip())
    if body == "json" and charset not in ("", "charset=utf-8"):
        body = None
    return Formats(body, _reply_kind(accept.decode("latin-1").lower()))


def _reply_kind(accept: str) -> ReplyKind:
    """msgpack where it is asked for by name and not less wanted than JSON; JSON for all else."""
    wanted = {"json": 0.0, "msgpack": 0.0}
    for item in accept.split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        kind = _KINDS.get(name)
        if kind == "json" or kind == "msgpack":
            wanted[kind] = max(wanted[kind], _quality(parameters))
    return "msgpack" if wanted["msgpack"] and wanted["msgpack"] >= wanted["json"] else "json"


def _quality(parameters: Sequence[str]) -> float:
    try:
        return next((float(given[2:]) for given in parameters if given.startswith("q=")), 1.0)
    except ValueError:
        return 0.0


def unsupported(*kinds: str) -> RequestProblem:
    """The 415 of a route that reads these media types."""
    return RequestProblem(
        415, "unsupported_media_type", f"send the body with 'Content-Type: {' or '.join(kinds)}', text in UTF-8"
    )


def decode(body: bytes, kind: type[T], given: BodyKind | None = "json") -> T:
    """The body as a `kind`: 415 if its format is none of ours, 400 if it is not what its format says, 422 with a
    pointer if it holds something else."""
    if given != "json" and given != "msgpack":
        raise unsupported(JSON, MSGPACK)
    try:
        return cast(T, _decoder(cast(Hashable, kind), given).decode(body))
    except msgspec.ValidationError as error:
        raise _invalid(str(error), given) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        if given == "msgpack":
            raise RequestProblem(400, "malformed_msgpack", f"the body is not valid msgpack{_empty(body)}") from None
        where = _not_json(body)
        raise RequestProblem(400, "malformed_json", f"the body is not valid JSON in UTF-8{where}") from None
    except RecursionError:
        raise too_deep("") from None


@lru_cache(maxsize=64)
def _decoder(kind: Hashable, given: ReplyKind) -> msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]:
    """A decoder for a type: making one takes longer than using it."""
    return msgspec.json.Decoder(kind) if given == "json" else msgspec.msgpack.Decoder(kind)


def encode(value: msgspec.Struct, kind: ReplyKind) -> bytes:
    """`value` in the reply's format. Nothing is validated: it was made here."""
    if kind == "json":
        return _JSON_ENCODER.encode(value)
    try:
        return _MSGPACK_ENCODER.encode(value)
    except OverflowError:
        message = "a payload in this reply holds an integer beyond 64 bits, which msgpack cannot say: accept JSON"
        raise RequestProblem(406, "not_acceptable", message) from None


def too_deep(pointer: str) -> RequestProblem:
    """The 422 of JSON nested too deep."""
    return invalid(f"expected JSON nested at most {MAX_DEPTH} deep", pointer)


def _plain(value: object) -> object:
    """numpy scalars in the engine's counters, as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no JSON for {type(value).__name__}")


_JSON_ENCODER: Final = msgspec.json.Encoder(enc_hook=_plain)
_MSGPACK_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_plain)


def _empty(body: bytes) -> str:
    return "" if body else ": it is empty"


def _not_json(body: bytes) -> str:
    if b"NaN" in body or b"Infinity" in body:
        return ": NaN and Infinity are not JSON"
    return _empty(body)


def _invalid(fault: str, given: ReplyKind) -> RequestProblem:
    """A 422 from msgspec's message, its path made a JSON pointer."""
    match = _FAULT.fullmatch(fault)
    message, path = (match["message"], match["path"] or "") if match else (fault, "")
    if given == "json":
        message = message.replace("`bytes", "`base64 string")
    steps = (name or index for name, index in _STEP.findall(path))
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
    detail = f"{pointer}: {message}" if pointer else message
    return RequestProblem(422, "invalid_input", detail, [FieldError(pointer, message)])

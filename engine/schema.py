"""What a collection, a record id and a payload may look like: checked once, at the border."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from nestvec.engine.chunking import Chunking
from nestvec.engine.filters.declared import Fields, check_fields
from nestvec.errors import InvalidInput
from nestvec.index.granularity import check_granularities, default_granularities
from nestvec.index.metric import Metric as IndexMetric

Metric = Literal["cosine", "dot", "l2"]
Dtype = Literal["float32", "float16"]

MAX_DIMS = 4096
MAX_ID_BYTES = 256
MAX_PAYLOAD_BYTES = 65536
MAX_PAYLOAD_DEPTH = 64
MAX_TEXT_BYTES = 1 << 20
MAX_BM25_FIELDS = 16
_BM25_FIELD = re.compile(r"(?=.{1,100}$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class CollectionConfig:
    """What is fixed when a collection is created. `granularities` ascend and end at `dims`. `fields` declares the types
    of payload fields: "string", "number", "bool" or "datetime". `bm25`: texts can be searched by their words, and so
    can the strings in the payload fields `bm25_fields` ("title", "author.name")."""

    dims: int
    metric: Metric = "cosine"
    granularities: tuple[int, ...] = ()
    dtype: Dtype = "float32"
    encoder: str | None = None
    encoder_fingerprint: str | None = None
    chunking: Chunking | None = None
    fields: Fields = field(default_factory=dict, hash=False)
    bm25: bool = False
    bm25_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.dims, bool) or not isinstance(self.dims, int) or not 1 <= self.dims <= MAX_DIMS:
            raise InvalidInput(f"dims must be an integer from 1 to {MAX_DIMS}, got {self.dims!r}")
        if self.metric not in get_args(Metric):
            raise InvalidInput(f"metric must be one of {', '.join(get_args(Metric))}; got {self.metric!r}")
        if self.dtype not in get_args(Dtype):
            raise InvalidInput(f"dtype must be one of {', '.join(get_args(Dtype))}; got {self.dtype!r}")
        if self.chunking is not None and self.encoder is None:
            raise InvalidInput("chunking needs an encoder: vectors of whole documents cannot be cut")
        object.__setattr__(self, "fields", check_fields(self.fields))
        object.__setattr__(self, "bm25_fields", tuple(self.bm25_fields))
        _check_bm25(self.bm25, self.bm25_fields)
        chosen = tuple(self.granularities) or default_granularities(self.dims)
        object.__setattr__(self, "granularities", check_granularities(chosen, self.dims))

    @property
    def index_metric(self) -> IndexMetric:
        """The metric of the stored form: cosine is the dot product of unit vectors."""
        return "l2" if self.metric == "l2" else "dot"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads it back."""
        return {
            "dims": self.dims,
            "metric": self.metric,
            "granularities": list(self.granularities),
            "dtype": self.dtype,
            "encoder": self.encoder,
            "encoder_fingerprint": self.encoder_fingerprint,
            "chunking": None if self.chunking is None else self.chunking.to_json(),
            "fields": dict(self.fields),
            "bm25": self.bm25,
            "bm25_fields": list(self.bm25_fields),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CollectionConfig:
        """The config that `to_json` wrote."""
        return cls(
            int(data["dims"]),
            cast(Metric, data["metric"]),
            tuple(data["granularities"]),
            cast(Dtype, data["dtype"]),
            data["encoder"],
            data["encoder_fingerprint"],
            chunking=Chunking.from_json(data["chunking"]) if data.get("chunking") else None,
            fields=data.get("fields", {}),
            bm25=data.get("bm25", False),
            bm25_fields=tuple(data.get("bm25_fields", ())),
        )


def _check_bm25(bm25: bool, names: tuple[str, ...]) -> None:
    if not isinstance(bm25, bool):
        raise InvalidInput(f"bm25 is true or false, got {bm25!r:.100}")
    if names and not bm25:
        raise InvalidInput("bm25_fields are searched by their words: they need bm25=True")
    if len(set(names)) != len(names) or len(names) > MAX_BM25_FIELDS:
        raise InvalidInput(f"bm25_fields are at most {MAX_BM25_FIELDS} different fields, got {names!r:.200}")
    for name in names:
        if not isinstance(name, str) or not _BM25_FIELD.fullmatch(name):
            raise InvalidInput(
                "a field of bm25_fields is 1 to 100 characters of a-z, A-Z, 0-9, _ and -, with dots between the names "
                f"of nested objects; got {name!r:.100}"
            )


def check_name(name: str) -> str:
    """A collection's name, or InvalidInput."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            "a collection name is 1 to 63 characters of a-z, 0-9, _ and -, and starts with a letter or "
            f"digit; got {name!r:.100}"
        )
    return name


def check_id(id: str) -> str:
    """A record's id, or InvalidInput: 1 to 256 bytes of UTF-8 with no control characters."""
    if not isinstance(id, str):
        raise InvalidInput(f"an id is a string, got {type(id).__name__}")
    size = len(encode_text(id, "id"))
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidInput(f"an id has 1 to {MAX_ID_BYTES} bytes of UTF-8, got {size}")
    if not id.isprintable() and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in id):
        raise InvalidInput(f"an id has no control characters, got {id!r:.100}")
    return id


def check_text(text: str | None) -> str | None:
    """A record's text, or InvalidInput: at most 1 MiB of UTF-8."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidInput(f"text is a string, got {type(text).__name__}")
    size = len(encode_text(text, "text"))
    if size > MAX_TEXT_BYTES:
        raise InvalidInput(f"text has at most {MAX_TEXT_BYTES} bytes of UTF-8, got {size}")
    return text


def encode_text(text: str, what: str) -> bytes:
    """UTF-8, or InvalidInput for lone surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"the {what} holds a lone surrogate, which is no Unicode text") from None


def check_payload(payload: dict[str, Any] | None) -> bytes:
    """The payload as compact JSON (b"null" for None), or InvalidInput: an object of at most 65536 bytes, no NaN."""
    if payload is None:
        return b"null"
    if not isinstance(payload, dict):
        raise InvalidInput(f"a payload is a JSON object, got {type(payload).__name__}")
    _check_json(payload, MAX_PAYLOAD_DEPTH)
    data = encode_text(json.dumps(payload, ensure_ascii=False, separators=(",", ":")), "payload")
    if len(data) > MAX_PAYLOAD_BYTES:
        raise InvalidInput(f"a payload has at most {MAX_PAYLOAD_BYTES} bytes of JSON, got {len(data)}")
    return data


def _check_json(value: object, depth: int) -> None:
    if depth == 0:
        raise InvalidInput(f"a payload nests at most {MAX_PAYLOAD_DEPTH} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(f"payload keys are strings, got {key!r:.100}")
            _check_json(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, depth - 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput("a payload holds no NaN or infinity: JSON cannot say them")
    elif value is not None and not isinstance(value, (str, int)):
        raise InvalidInput(f"a payload holds JSON values only, got {type(value).__name__}")

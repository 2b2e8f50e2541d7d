"""The verbs of a service over REST, each written once: see `steps` for how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nestvec.client import wire
from nestvec.client.steps import Call, Lost, Operation, Target
from nestvec.client.wire import call, decode
from nestvec.engine.aliases import AliasSwitch
from nestvec.engine.chunking import Chunking
from nestvec.engine.filters.declared import Fields
from nestvec.engine.keys import KeyInfo
from nestvec.engine.record import CollectionInfo
from nestvec.engine.schema import Dtype, Metric, check_name
from nestvec.errors import Conflict


@dataclass(frozen=True)
class ServiceInfo:
    """What answers: the release of nestvec, its kernels and SQLite, the encoders and routes at hand, its processes, and
    the bounds of a request (None: no bound)."""

    name: str
    version: str
    kernels: str
    sqlite: str
    encoders: list[str]
    routes: list[str]
    workers: int
    limits: dict[str, float | None]


def info(self: Target) -> Operation[ServiceInfo]:
    """What answers."""
    return wire.known(ServiceInfo, decode((yield from self.ask(call("GET", "/v1/info", repeatable=True)))))


def healthy(self: Target) -> Operation[bool]:
    """Whether the service answers queries now. One attempt; raises nothing."""
    answer = yield Call("GET", "/readyz", timeout=self._options.timeout)
    return answer is not None and not isinstance(answer, Lost) and answer.status == 200


def collections(self: Target) -> Operation[list[CollectionInfo]]:
    """Facts about every collection, by name."""
    reply = yield from self.ask(call("GET", "/v1/collections", repeatable=True))
    return [wire.info_in(one) for one in decode(reply)["collections"]]


def create_collection(
    self: Target,
    name: str,
    *,
    dims: int | None = None,
    metric: Metric = "cosine",
    granularities: Sequence[int] | None = None,
    dtype: Dtype = "float32",
    encoder: str | None = None,
    chunking: Chunking | None = None,
    fields: Fields | None = None,
    bm25: bool | None = None,
    bm25_fields: Sequence[str] = (),
    exist_ok: bool = False,
) -> Operation[str]:
    """Create a collection. With `encoder` dims and granularities come from it. `chunking` splits texts into
    chunks, and searches find whole documents. `fields` declares the types of payload fields: "string", "number",
    "bool" or "datetime" (or arrays of it); a write that differs is refused. `exist_ok` returns an existing
    collection of the same configuration. `bm25` (None: where there is an encoder) lets texts, and the strings in
    the payload fields `bm25_fields`, be searched by their words. Raises Conflict, InvalidInput."""
    given: dict[str, Any] = {
        "dims": dims,
        "metric": metric,
        "granularities": None if granularities is None else list(granularities),
        "dtype": dtype,
        "encoder": encoder,
        "chunking": None if chunking is None else chunking.to_json(),
        "fields": fields,
        "bm25": bm25,
        "bm25_fields": list(bm25_fields) or None,
    }
    body = {key: value for key, value in given.items() if value is not None}
    reply = yield from self.ask(call("PUT", f"/v1/collections/{check_name(name)}", body, repeatable=exist_ok))
    if reply.status == 200 and not exist_ok:
        raise Conflict(f"collection {name!r} exists already")
    return name


def delete_collection(self: Target, name: str) -> Operation[None]:
    """Delete a collection and all its records. Raises NotFound, Busy while it is built, sealed or compacted."""
    yield from self.ask(call("DELETE", f"/v1/collections/{check_name(name)}"))


def aliases(self: Target) -> Operation[dict[str, str]]:
    """Alias -> the collection that it names."""
    found: dict[str, str] = decode((yield from self.ask(call("GET", "/v1/aliases", repeatable=True))))["aliases"]
    return found


def switch_aliases(self: Target, switches: Sequence[AliasSwitch]) -> Operation[dict[str, str]]:
    """Let aliases name other collections, or nothing: all switches at one instant, or none. All aliases after it.

    Raises InvalidInput, Conflict where an alias is a collection's name, NotFound where there is no such collection
    or no such alias to take away.
    """
    body = {"switches": [asdict(each) for each in switches]}
    found: dict[str, str] = decode((yield from self.ask(call("POST", "/v1/aliases", body))))["aliases"]
    return found


def create_key(
    self: Target, name: str, scope: str, collections: Sequence[str] | None = None
) -> Operation[tuple[KeyInfo, str]]:
    """Make an API key of scope "read", "write" or "admin", for these collections or (None) for all; an alias
    counts as the collection that it names now. Returns its facts and its secret, which is never shown again.

    Raises InvalidInput, Conflict where a key has this name.
    """
    bound = None if collections is None else list(collections)
    body = {"name": name, "scope": scope, "collections": bound}
    data = decode((yield from self.ask(call("POST", "/v1/keys", body))))
    return _key(data), str(data["secret"])


def keys(self: Target) -> Operation[list[KeyInfo]]:
    """The API keys, by name, without their secrets."""
    return [_key(one) for one in decode((yield from self.ask(call("GET", "/v1/keys", repeatable=True))))["keys"]]


def revoke_key(self: Target, name: str) -> Operation[None]:
    """Take an API key away: requests with it are refused from now on, by every process. Raises NotFound."""
    yield from self.ask(call("DELETE", f"/v1/keys/{check_name(name)}"))


def _key(data: Mapping[str, Any]) -> KeyInfo:
    bound = data["collections"]
    return wire.known(KeyInfo, {**data, "collections": None if bound is None else tuple(bound)})

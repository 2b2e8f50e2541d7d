"""The lane: queries that take less time than the way to them are answered where their last byte comes in.

An ordinary request costs a task, an exchange, a deadline, a dozen calls from server to route and back: several searches
as short as ours. What comes in one turn of the event loop is searched together at its end, batch by batch, and the
answers are written straight to their connections. The lane only says 200: wherever anything is not plain, it hands the
request back untouched, and it goes the ordinary way, through the gate, from the beginning. Which queries are quick
enough is known from those that went that way.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np

from nestvec.engine.record import Hits
from nestvec.errors import NestvecError
from nestvec.server.batching import HELD_SECONDS, INLINE_SECONDS, MOST_QUERIES, Group, is_fresh, search_vectors
from nestvec.server.codec import F32, Options, ReplyParts, query_reply, to_options, to_vector
from nestvec.server.errors import RequestProblem
from nestvec.server.exchange import id_of
from nestvec.server.formats import MEDIA_TYPES, ReplyKind, encode, formats
from nestvec.server.fragments import Fragments
from nestvec.server.logs import Line, RequestLog
from nestvec.server.scopes import OPERATIONS, check_access
from nestvec.server.service import Service
from nestvec.server.wire import QueryBody

if TYPE_CHECKING:
    from nestvec.server.protocol import GuardedProtocol

ROUTE: Final = "/v1/collections/{name}/query"
MOST_BYTES: Final = 64 * 1024
"""Of a body: a larger one is held, counted and timed by the gate."""

_START, _END = b"/v1/collections/", b"/query"
_NOT_PLAIN: Final = frozenset((b"transfer-encoding", b"expect", b"content-encoding", b"upgrade"))
_LEAST_MS = 100  # deadlines that the lane cannot miss: it answers within some milliseconds or not at all
_COMMON_SECONDS = 0.5
_MOST_HELD_SECONDS, _SHARE_HELD = 8e-3, 0.2
_MOST_HEADS, _LONGEST_HEAD = 2048, 1024
_NAMES_KEYS = frozenset((b"authorization", b"x-api-key", b"cookie"))
_ACCESS: Final = OPERATIONS["query"]


class Head(NamedTuple):
    """What is known from a request's head: its collection, headers and formats."""

    name: str
    headers: dict[bytes, bytes]
    body: ReplyKind
    reply: ReplyKind


@dataclass(slots=True, eq=False)
class _Asked:
    """A request that waits for the end of the turn; `key`: the name of that which it is counted for."""

    connection: GuardedProtocol
    head: Head
    query: QueryBody
    vector: F32
    key: str | None
    bytes_in: int
    start: float


@dataclass(slots=True, eq=False)
class _Batch:
    """Requests that may share a call, and what a query of theirs takes."""

    group: Group
    seconds: float
    waiting: list[_Asked] = field(default_factory=list)


class Lane:
    """Answers plain queries for one event loop."""

    def __init__(self, service: Service, requests: RequestLog | None = None) -> None:
        """`requests`: where one line per request goes."""
        self._service, self._requests = service, requests
        self._fragments = {kind: Fragments(kind) for kind in MEDIA_TYPES}
        self._parts: dict[ReplyKind, ReplyParts] = {}
        self._options: dict[object, Options] = {}  # of queries without anything rare
        self._batches: dict[object, _Batch | None] = {}  # of this turn, by collection and options; None: not for us
        self._heads: dict[bytes, tuple[Head, int]] = {}  # and the length of the body
        self._scheduled, self._looked, self._traced, self._renewed = False, False, False, 0.0

    def head(self, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Head | None:
        """What is known of a POST that may be for the lane, once its body is in; None where it is not."""
        if not (url.startswith(_START) and url.endswith(_END)):
            return None
        find = _head if self._service.auth.needed else _known_head  # heads with keys in them are not kept
        return find(url, tuple(headers), bool(self._service.settings.trusted_proxies))

    def known(self, head: bytes, body_bytes: int) -> Head | None:
        """What `remember` was told of this head, all of it up to the body, where that has the length that it says."""
        held = self._heads.get(head)
        return held[0] if held is not None and held[1] == body_bytes else None

    def remember(self, request: bytes, head: Head, body_bytes: int) -> None:
        """Note the head of a request that came as a whole, and that the lane took: the same bytes mean the same. Not
        where keys are asked for, for they are in it."""
        raw = request[: len(request) - body_bytes]
        if len(raw) > _LONGEST_HEAD or raw.find(b"\r\n\r\n") != len(raw) - 4 or self._service.auth.needed:
            return
        if not _NAMES_KEYS.isdisjoint(head.headers):
            return
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[raw] = head, body_bytes

    def take(self, connection: GuardedProtocol, head: Head, body: bytes) -> bool:
        """Answer this request at the end of the turn; False, and nothing done, where it has to go the ordinary way."""
        start = perf_counter()
        try:
            if not self._looked:
                self._look()
            if self._traced or self._service.stopping or self._service.admission.full or connection.flow.write_paused:
                return False
            key = self._key(connection, head)
            if key is not None and self._service.admission.crowded(key):
                return False
            query = _DECODERS[head.body].decode(body)
            batch = self._batch(head.name, query)
            if batch is None:
                return False
            vector = _vector(query.vector, batch.group.collection.config.dims)
            query.vector = None  # a list of hundreds of numbers is freed now, while it is in the cache
        except (RequestProblem, NestvecError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        self._service.admission.start_work()
        if key is not None:
            self._service.admission.enter_key(key)
        batch.waiting.append(_Asked(connection, head, query, vector, key, len(body), start))
        return True

    def finish(self) -> None:
        """Answer who waits, as many as may hold the loop for so long; the others in its next turn."""
        self._scheduled, self._looked = False, False
        held = self._held()
        end = perf_counter() + held
        try:
            for batch in self._batches.values():
                while batch is not None and batch.waiting and perf_counter() < end:
                    share = min(MOST_QUERIES, max(1, int(held / batch.seconds)))
                    waiting, batch.waiting = batch.waiting[:share], batch.waiting[share:]
                    self._answer(batch.group, waiting)
        finally:  # nobody waits for ever, whatever happened
            self._batches = {form: batch for form, batch in self._batches.items() if batch and batch.waiting}
            if self._batches:
                self._schedule()

    def _held(self) -> float:
        """Seconds that the loop may be held now: longer where so many wait that the next ones will be refused, for then
        larger batches, and more sockets read at a time, answer more."""
        waits = sum(batch.seconds * len(batch.waiting) for batch in self._batches.values() if batch is not None)
        return min(_MOST_HELD_SECONDS, max(HELD_SECONDS, waits * _SHARE_HELD))

    def finish_all(self) -> None:
        """Answer everybody now."""
        for batch in self._batches.values():
            while batch is not None and batch.waiting:
                waiting, batch.waiting = batch.waiting[:MOST_QUERIES], batch.waiting[MOST_QUERIES:]
                self._answer(batch.group, waiting)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.finish)

    def _look(self) -> None:
        """Look at what may have changed since the last turn: once for all requests of this one."""
        if perf_counter() - self._renewed > _COMMON_SECONDS:
            self._renew()
        self._service.auth.refresh()
        self._looked = True
        self._schedule()  # which ends the turn

    def _renew(self) -> None:
        """What is looked at now and then: whether there are spans to make, and how old the calibrations are."""
        self._renewed, self._traced = perf_counter(), self._service.tracing.on
        self._parts = {kind: ReplyParts(kind, self._fragments[kind]) for kind in MEDIA_TYPES}
        self._options.clear()

    def _key(self, connection: GuardedProtocol, head: Head) -> str | None:
        """The name of the key that the request is counted for. Raises what the gate would refuse it with."""
        service = self._service
        client, server = connection.client or ("", 0), connection.server or ("", 0)
        identity = service.auth.recognise(head.headers, client[0], server[0])
        if identity is None:
            return None
        check_access(identity, _ACCESS, head.name, service.database)
        return identity.name

    def _batch(self, name: str, query: QueryBody) -> _Batch | None:
        """Where the query may wait; None where its search is not known to be quick, or its deadline is short."""
        if query.vector is None or query.text is not None or (query.timeout_ms or _LEAST_MS) < _LEAST_MS:
            return None
        if query.filter is None and query.plan is None and query.fusion is None and query.with_payload is True:
            form: object = (
                name, query.k, query.rank, query.exact, query.with_vector, query.recall, query.budget_ms,
                query.budget_bytes,
            )  # fmt: skip
            options = self._options.get(form)
            if options is None:
                options = self._options[form] = to_options(query, self._service.settings, "")
        else:
            options = to_options(query, self._service.settings, "")
            form = name, options
        if form not in self._batches:
            self._batches[form] = self._opened(name, options)
        return self._batches[form]

    def _opened(self, name: str, options: Options) -> _Batch | None:
        collection = self._service.at_hand(name)
        if collection is None:
            return None
        group = Group(collection, options)
        seconds = self._service.batcher.seconds.get(group, INLINE_SECONDS)
        return _Batch(group, seconds) if seconds < INLINE_SECONDS else None

    def _answer(self, group: Group, waiting: list[_Asked]) -> None:
        """Search for a batch, and write the answers; all go the ordinary way where anything goes wrong."""
        for asked in waiting:
            self._service.admission.end_work()
            if asked.key is not None:
                self._service.admission.leave_key(asked.key)
        start = perf_counter()
        answers, bodies = self._answers(group, waiting)
        if not bodies:
            for asked in waiting:
                asked.connection.go_ordinary_way()
            return
        self._service.batcher.remember(group, (perf_counter() - start) / len(waiting))
        lines = []
        for asked, body in zip(waiting, bodies, strict=True):
            id = id_of(asked.head.headers.get(b"x-request-id", b""))
            asked.connection.answered_in_lane(_HEADS[asked.head.reply] % (len(body), id.encode()), body)
            milliseconds = round((perf_counter() - asked.start) * 1000, 3)
            lines.append(Line(id, "POST", ROUTE, 200, milliseconds, asked.bytes_in, len(body), asked.head.name))
        self._service.searched(answers)
        self._service.metrics.answered(ROUTE, "POST", 200, *(line.ms * 1e-3 for line in lines))
        if self._requests is not None:
            self._requests.note(lines)

    def _answers(self, group: Group, waiting: list[_Asked]) -> tuple[list[Hits], list[bytes]]:
        """The answers of a batch and their bodies; nothing where one has to go the ordinary way."""
        try:
            if not is_fresh(group.collection):  # a search would first have to load something
                return [], []
            answers = search_vectors(group.collection, group.options, [asked.vector for asked in waiting])
            parts, bodies = self._parts, []
            for asked, hits in zip(waiting, answers, strict=True):
                kind = asked.head.reply
                bodies.append(encode(query_reply(hits, asked.query, parts[kind], asked.start), kind))
        except Exception:  # whatever it is, each meets it again on the ordinary way, and is told
            return [], []
        return answers, bodies


def _head(url: bytes, headers: tuple[tuple[bytes, bytes], ...], behind_proxy: bool) -> Head | None:
    known = dict(headers)
    length, milliseconds = known.get(b"content-length", b""), known.get(b"x-timeout-ms")
    if not (length.isdigit() and len(length) < 6 and 0 < int(length) <= MOST_BYTES):
        return None
    if milliseconds is not None and not (milliseconds.isdigit() and int(milliseconds[:10]) >= _LEAST_MS):
        return None
    if not _NOT_PLAIN.isdisjoint(known) or (behind_proxy and b"x-forwarded-for" in known):  # whose client is another
        return None
    found = formats(known.get(b"content-type", b""), known.get(b"accept", b""))
    if found.body != "json" and found.body != "msgpack":
        return None
    return Head(url[len(_START) : -len(_END)].decode("latin-1"), known, found.body, found.reply)


_known_head = lru_cache(maxsize=1024)(_head)


def _vector(given: list[float] | bytes | None, dims: int) -> F32:
    """f32 [dims]. Numbers that are not finite, or too large for float32 and so infinite, are for the search to refuse:
    it looks at all vectors at once."""
    if isinstance(given, bytes) and len(given) == 4 * dims:
        return np.frombuffer(given, "<f4")
    if isinstance(given, list) and len(given) == dims:
        return np.frombuffer(array("f", given), np.float32)
    return to_vector(given or [], dims, "/vector")


_DECODERS: Final[dict[ReplyKind, msgspec.json.Decoder[QueryBody] | msgspec.msgpack.Decoder[QueryBody]]] = {
    "json": msgspec.json.Decoder(QueryBody),
    "msgpack": msgspec.msgpack.Decoder(QueryBody),
}
_HEADS: Final = {
    kind: b"content-type: %s\r\ncontent-length: %%d\r\nx-request-id: %%s\r\n\r\n" % name.encode()
    for kind, name in MEDIA_TYPES.items()
}

"""Search, one query or many. Hot: msgspec in, bytes out."""

from __future__ import annotations

from time import perf_counter

from fastapi import FastAPI

from nestvec.engine.record import Hits
from nestvec.errors import NestvecError
from nestvec.server.batching import search_batch
from nestvec.server.codec import (
    Input,
    Options,
    ReplyParts,
    check_batch,
    query_reply,
    query_result,
    since,
    to_input,
    to_options,
)
from nestvec.server.exchange import shorten
from nestvec.server.hot import Call, add_hot_route
from nestvec.server.service import no_collection
from nestvec.server.wire import QueryBatchBody, QueryBatchReply, QueryBody, QueryReply


async def query(call: Call, name: str) -> bytes:
    """The k best records for a vector or a text, with the plan that found them and the work it took."""
    start = perf_counter()
    service, request = call.service, call.decode(QueryBody)
    options = to_options(request, service.settings, "")
    if request.timeout_ms is not None:
        shorten(call.scope, request.timeout_ms)
    collection = await service.opened(name)
    wanted = to_input(request, collection.config.dims, "")
    try:
        hits = await service.batcher.search(collection, options, wanted)
    except NestvecError:
        if collection.deleted:
            raise no_collection(name) from None
        raise
    service.searched([hits])
    return call.reply(query_reply(hits, request, ReplyParts(call.formats.reply), start))


async def query_batch(call: Call, name: str) -> bytes:
    """Several queries, each with its own options; all are answered or none."""
    start = perf_counter()
    queries = call.decode(QueryBatchBody).queries
    check_batch(queries, call.service.settings.max_batch, "queries")
    for query in queries:
        if query.timeout_ms is not None:
            shorten(call.scope, query.timeout_ms)
    answers = await call.service.run(lambda: _search(call, name, queries))
    call.service.searched(answers)
    parts = ReplyParts(call.formats.reply)
    results = [query_result(hits, query, parts) for hits, query in zip(answers, queries, strict=True)]
    return call.reply(QueryBatchReply(results, since(start)))


def _search(call: Call, name: str, queries: list[QueryBody]) -> list[Hits]:
    """The hits of each query; those with equal options are searched in one call."""
    collection = call.service.collection(name)
    groups: dict[Options, list[int]] = {}
    inputs: list[Input] = []
    for position, query in enumerate(queries):
        pointer = f"/queries/{position}"
        groups.setdefault(to_options(query, call.service.settings, pointer), []).append(position)
        inputs.append(to_input(query, collection.config.dims, pointer))
    answers: dict[int, Hits] = {}
    for options, positions in groups.items():
        found = search_batch(collection, options, [inputs[position] for position in positions])
        answers.update(zip(positions, found, strict=True))
    return [answers[position] for position in range(len(queries))]


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    add_hot_route(
        app, "POST", "query/batch", query_batch, QueryBatchBody, QueryBatchReply, operation="query_batch", tag="search"
    )
    add_hot_route(app, "POST", "query", query, QueryBody, QueryReply, operation="query", tag="search")

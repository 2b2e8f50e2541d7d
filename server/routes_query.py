"""Search, one query or many. Hot: msgspec in, msgspec out."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from fastapi import FastAPI, Response

from nestvec.engine.collection import Collection
from nestvec.engine.plan import Plan
from nestvec.engine.record import Hits
from nestvec.server.codec import (
    check_batch,
    check_query,
    decode,
    encode,
    query_result,
    to_plan,
    to_vector,
)
from nestvec.server.openapi import json_body, json_reply, problems
from nestvec.server.service import CollectionName, RawBody, Service, TheService
from nestvec.server.wire import QueryBatchBody, QueryBatchReply, QueryBody, QueryReply

_PATH = "/v1/collections/{name}/query"
_Options = tuple[bool, int, Plan | None, bool, bool, bool]


async def query(service: TheService, name: CollectionName, body: RawBody) -> Response:
    """The k best records for a vector or a text, with the plan that found them and the work it took."""
    return await service.run(lambda: _query(service, name, body))


def _query(service: Service, name: str, body: bytes) -> Response:
    start = perf_counter()
    request = decode(body, QueryBody)
    check_query(request, "")
    collection = service.collection(name)
    vector = None if request.vector is None else to_vector(request.vector, collection.config.dims, "/vector")
    hits = collection.search(
        vector,
        text=request.text,
        k=request.k,
        plan=to_plan(request.plan),
        exact=request.exact,
        with_payload=request.with_payload,
        with_vector=request.with_vector,
    )
    result = query_result(hits, request.with_vector)
    return encode(QueryReply(result.hits, result.plan, result.work, result.generation, _since(start)))


async def query_batch(service: TheService, name: CollectionName, body: RawBody) -> Response:
    """Several queries, each with its own options; all are answered or none."""
    return await service.run(lambda: _query_batch(service, name, body))


def _query_batch(service: Service, name: str, body: bytes) -> Response:
    start = perf_counter()
    queries = decode(body, QueryBatchBody).queries
    check_batch(queries, service.settings.max_batch, "queries")
    collection = service.collection(name)
    groups: dict[_Options, list[int]] = {}
    for position, one in enumerate(queries):
        check_query(one, f"/queries/{position}")
        options = (one.text is None, one.k, to_plan(one.plan), one.exact, one.with_payload, one.with_vector)
        groups.setdefault(options, []).append(position)
    answers: dict[int, Hits] = {}
    for options, positions in groups.items():
        found = _search_group(collection, options, positions, queries)
        answers.update(zip(positions, found, strict=True))
    results = [query_result(answers[i], one.with_vector) for i, one in enumerate(queries)]
    return encode(QueryBatchReply(results, _since(start)))


def _search_group(
    collection: Collection, options: _Options, positions: list[int], queries: list[QueryBody]
) -> list[Hits]:
    """Queries that differ only in their input, in one call of the engine."""
    by_vector, k, plan, exact, with_payload, with_vector = options
    vectors, texts = None, None
    if by_vector:
        dims = collection.config.dims
        vectors = np.stack([to_vector(queries[i].vector or [], dims, f"/queries/{i}/vector") for i in positions])
    else:
        texts = [queries[i].text or "" for i in positions]
    return collection.search_batch(
        vectors, texts=texts, k=k, plan=plan, exact=exact, with_payload=with_payload, with_vector=with_vector
    )


def _since(start: float) -> float:
    return round((perf_counter() - start) * 1000, 3)


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    faults = problems(400, 404, 409, 422, 501)
    app.add_api_route(_PATH, query, methods=["POST"], operation_id="query", tags=["search"], response_class=Response,
                      openapi_extra=json_body(QueryBody),
                      responses={**json_reply(QueryReply, "Best hits first"), **faults})  # fmt: skip
    app.add_api_route(_PATH + "/batch", query_batch, methods=["POST"], operation_id="query_batch", tags=["search"],
                      response_class=Response, openapi_extra=json_body(QueryBatchBody),
                      responses={**json_reply(QueryBatchReply, "One result per query"), **faults})  # fmt: skip

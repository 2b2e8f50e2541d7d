"""What each operation asks of a key: one table, and the guard that holds every route to it.

An operation that is not listed is closed to all but admin keys, and fails a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nestvec.engine.database import Database
from nestvec.engine.keys import Scope as KeyScope
from nestvec.server.auth import Identity
from nestvec.server.errors import RequestProblem
from nestvec.server.exchange import EXCHANGE, Exchange


@dataclass(frozen=True)
class Access:
    """Who may call an operation, and how it is held.

    reach: "collection": the one that the path names; "own": what the caller's collections leave, the route sees to it;
    "all": the whole database, closed to keys that are bound to collections. timed: the deadline ends it. streamed: the
    route reads the body in pieces, up to max_upload_mb.
    """

    scope: KeyScope | Literal["open"]
    reach: Literal["collection", "own", "all"] = "collection"
    timed: bool = True
    streamed: bool = False


_READ, _WRITE = Access("read"), Access("write")
_OPEN = Access("open", "own")
UNLISTED = Access("admin", "all")

OPERATIONS: dict[str, Access] = {
    # the service
    "health": _OPEN,
    "live": _OPEN,
    "ready": _OPEN,
    "openapi": _OPEN,
    "swagger_ui_html": _OPEN,
    "info": Access("read", "own"),
    "metrics": Access("read", "all"),
    "embeddings": Access("read", "own"),
    "create_key": Access("admin", "all"),
    "list_keys": Access("admin", "all"),
    "revoke_key": Access("admin", "all"),
    # collections
    "list_collections": Access("read", "own"),
    "get_collection": _READ,
    "put_collection": _WRITE,
    "patch_collection": _WRITE,
    "delete_collection": Access("admin"),
    "seal": Access("write", timed=False),
    "compact": Access("write", timed=False),
    # aliases, jobs, snapshots
    "list_aliases": Access("read", "own"),
    "switch_aliases": Access("write", "all"),
    "create_job": _WRITE,
    "import_records": Access("write", timed=False, streamed=True),
    "list_jobs": Access("read", "own"),
    "get_job": Access("read", "own"),
    "cancel_job": Access("write", "own"),
    "get_job_result": Access("read", "own", timed=False),
    "list_snapshots": Access("read", "own"),
    "upload_snapshot": Access("admin", "all", timed=False, streamed=True),
    "download_snapshot": Access("read", "own", timed=False),
    "delete_snapshot": Access("admin", "all"),
    "restore_snapshot": Access("admin", "all"),
    # records
    "upsert_records": _WRITE,
    "delete_records": _WRITE,
    "get_records": _READ,
    "scroll_records": _READ,
    "count_records": _READ,
    "count_matching_records": _READ,
    # search
    "query": _READ,
    "query_batch": _READ,
    # recall
    "explain": _READ,
    "frontier": _READ,
    "live_recall": _READ,
    "measure_recall": _READ,
}


def operation(route: Route) -> str:
    """The name of a route in the table."""
    return (route.operation_id if isinstance(route, APIRoute) else None) or route.name


def guard(app: FastAPI, database: Database) -> None:
    """Hold every route of the application to the table. To be called after all routes are there."""
    for route in app.routes:
        if isinstance(route, Route) and not isinstance(route.app, _Guarded):
            access = OPERATIONS.get(operation(route), UNLISTED)
            # FastAPI reads JSON for a body of ours, and hands anything else to its model, which says something else
            json = isinstance(route, APIRoute) and route.body_field is not None
            route.app = _Guarded(route.app, route.path, access, json, database)


def visible(request: Request, collection: str) -> bool:
    """Whether the caller's key may touch a collection (its own name, no alias)."""
    exchange: Exchange = request.scope[EXCHANGE]
    identity = exchange.identity
    return identity is None or identity.collections is None or collection in identity.collections


def check_visible(request: Request, collection: str | None) -> None:
    """403 unless the caller's key may touch a collection; for None, only keys that are bound to none may."""
    exchange: Exchange = request.scope[EXCHANGE]
    if exchange.identity is not None and exchange.identity.collections is not None:
        _check_collection(exchange.identity, collection or "")


class _Guarded:
    """A route that the right keys reach."""

    def __init__(self, app: ASGIApp, path: str, access: Access, json: bool, database: Database) -> None:
        self._app, self._path, self._access, self._json, self._database = app, path, access, json, database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE]
        parameters: Mapping[str, str] = scope["path_params"]
        exchange.enter(self._path, parameters.get("name"), timed=self._access.timed, streamed=self._access.streamed)
        if exchange.identity is not None:
            check_access(exchange.identity, self._access, parameters.get("name", ""), self._database)
        if self._json and exchange.reading:
            _check_json(exchange.headers.get(b"content-type", b""))
        await self._app(scope, receive, send)


def check_access(identity: Identity, access: Access, name: str, database: Database) -> None:
    """403 unless the key may call such an operation on the collection or alias `name`."""
    if access.scope == "open":
        return
    if not identity.may(access.scope):
        raise _forbidden(f"this needs a key of scope {access.scope}; the key sent has scope {identity.scope}")
    if identity.collections is None or access.reach == "own":
        return
    if access.reach == "all":
        raise _forbidden("this needs a key for all collections; the key sent is bound to some")
    _check_collection(identity, database.aliases().get(name, name))


def _check_collection(identity: Identity, name: str) -> None:
    if name not in (identity.collections or ()):
        raise _forbidden("the key sent is bound to other collections")


def _forbidden(detail: str) -> RequestProblem:
    return RequestProblem(403, "forbidden", detail)


def _check_json(content_type: bytes) -> None:
    kind, _, parameters = content_type.decode("latin-1").lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    if kind.strip() != "application/json" or charset not in ("", "charset=utf-8"):
        raise RequestProblem(415, "unsupported_media_type", "send JSON in UTF-8 with 'Content-Type: application/json'")

"""Hot routes: handlers that take the raw body and give the reply's bytes. FastAPI documents them and does not run them.

Solving a handler's dependencies costs FastAPI about as much as a search; a hot handler is called without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from nestvec.errors import NestvecError
from nestvec.server.errors import REQUEST_ID, logged
from nestvec.server.formats import ARROW, MEDIA_TYPES, Formats, decode, encode, formats_of
from nestvec.server.openapi import hot_body, hot_reply, problems
from nestvec.server.service import CollectionName, Service

T = TypeVar("T")

_COLLECTIONS: Final = "/v1/collections/"
_TYPES: Final = {kind: name.encode() for kind, name in MEDIA_TYPES.items()}


class Call:
    """One request of a hot route: its `body`, the `formats` of body and reply, and the service."""

    __slots__ = ("body", "formats", "scope", "service")

    def __init__(self, scope: Scope, body: bytes) -> None:
        self.scope, self.body = scope, body
        self.service: Service = scope["app"].state.service
        self.formats: Formats = formats_of(scope)

    def decode(self, kind: type[T]) -> T:
        """The body as a `kind`; raises the problems of `formats.decode`."""
        return decode(self.body, kind, self.formats.body)

    def reply(self, value: msgspec.Struct) -> bytes:
        """`value` in the format that the client asked for."""
        return encode(value, self.formats.reply)


Handler = Callable[[Call, str], Awaitable[bytes]]
"""Answers one call on the collection of this name."""


class HotRoute(APIRoute):
    """A route whose handler is called with the raw body."""

    def __init__(self, path: str, handler: Handler, **documented: Any) -> None:  # noqa: ANN401 - what APIRoute takes
        async def endpoint(name: CollectionName) -> None:
            """Only its parameters are read, for the document."""

        endpoint.__name__, endpoint.__doc__ = documented["operation_id"], handler.__doc__
        super().__init__(path, endpoint, response_model=None, **documented)
        self.verb = path.removeprefix(_COLLECTIONS + "{name}/")
        self._handler = handler
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope, await _body(receive))
        answer = await self._handler(call, scope["path_params"]["name"])
        headers = [(b"content-type", _TYPES[call.formats.reply]), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def add_hot_route(
    app: FastAPI,
    method: str,
    verb: str,
    handler: Handler,
    body: type[msgspec.Struct],
    reply: type[msgspec.Struct],
    *,
    operation: str,
    tag: str,
    arrow: str | None = None,
) -> None:
    """Serve `handler` under /v1/collections/{name}/`verb`; `arrow` describes the Arrow stream that it reads as well."""
    extra = hot_body(body)
    if arrow is not None:
        schema = {"type": "string", "format": "binary", "description": arrow}
        extra["requestBody"]["content"][ARROW] = {"schema": schema}
    route = HotRoute(
        f"{_COLLECTIONS}{{name}}/{verb}",
        handler,
        methods=[method],
        operation_id=operation,
        tags=[tag],
        openapi_extra=extra,
        responses={**hot_reply(reply), **problems(400, 404, 406, 409, 422, 501, 502, 504)},
    )
    app.router.routes.append(route)


class HotLane:
    """Middleware inside the gate that takes hot requests past the router, which tries every route on every request.

    What it does not know goes the ordinary way.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._routes: dict[tuple[str, str], HotRoute] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises RequestProblem for what goes wrong on a hot route."""
        found = self._find(scope) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        route, scope["path_params"] = found
        try:
            await route.app(scope, receive, send)
        except NestvecError as error:
            raise logged(error, scope[REQUEST_ID]) from error

    def _find(self, scope: Scope) -> tuple[HotRoute, dict[str, str]] | None:
        path: str = scope["path"]
        if not path.startswith(_COLLECTIONS) or scope.get("root_path"):
            return None
        if self._routes is None:
            routes = [route for route in scope["app"].router.routes if isinstance(route, HotRoute)]
            self._routes = {(method, route.verb): route for route in routes for method in route.methods or ()}
        name, _, verb = path[len(_COLLECTIONS) :].partition("/")
        route = self._routes.get((scope["method"], verb))
        return (route, {"name": name}) if route is not None and name else None


async def _body(receive: Receive) -> bytes:
    """The whole body, which the gate has bounded."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    return body

"""The gate: what every request passes before a route sees it. Request id, key, content type, body bound, last resort.

Pure ASGI, outermost, and closed by default: a route added tomorrow needs the key without anybody remembering it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestvec.server.errors import REQUEST_ID, RequestProblem, reply
from nestvec.server.settings import Settings

logger = logging.getLogger("nestvec.server")

OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/docs", "/openapi.json"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Gate:
    """Middleware that lets a request in, or answers it with a problem."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.limit = settings.max_body_bytes
        key = settings.api_key
        self.key_digest = hashlib.sha256(key.get_secret_value().encode()).digest() if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one ASGI connection on; only HTTP is gated (there are no websockets)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = scope[REQUEST_ID] = _request_id(headers)
        answer = _Answer(send, request_id)
        try:
            self._check_key(scope["path"], headers)
            body = await self._read_body(scope["method"], headers, receive)
            if body is not None:
                await self.app(scope, _Replay(body, receive), answer)
        except RequestProblem as problem:
            await reply(problem, request_id)(scope, receive, answer)
        except Exception:
            logger.exception("request %s failed", request_id)
            if answer.started:
                raise
            hidden = RequestProblem(500, "internal", "unexpected error; the server log has it under this instance")
            await reply(hidden, request_id)(scope, receive, answer)

    def _check_key(self, path: str, headers: Headers) -> None:
        if self.key_digest is None or path in OPEN_PATHS:
            return
        given = headers.get("x-api-key")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        # Digests have equal length, so the comparison tells nothing about the key's. Headers are latin-1 on the wire.
        digest = hashlib.sha256((given or "").encode("latin-1", "replace")).digest()
        if given is None or not hmac.compare_digest(digest, self.key_digest):
            detail = "this needs the API key: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise RequestProblem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})

    async def _read_body(self, method: str, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body, at most `limit` bytes; None if the client went away before its end."""
        self._check_headers(method, headers)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.limit:
                raise self._too_large()
            if not message.get("more_body", False):
                break
        if size:
            _check_content_type(headers)
        return b"".join(chunks)

    def _check_headers(self, method: str, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.limit:
            raise self._too_large()
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise RequestProblem(415, "unsupported_encoding", "send the body as it is, without Content-Encoding")
        if length != "0" and method in ("POST", "PUT", "PATCH"):
            _check_content_type(headers)

    def _too_large(self) -> RequestProblem:
        detail = f"the body is larger than {self.limit} bytes; send fewer records per request"
        # What is left of the body stays unread, so the connection cannot be used again.
        return RequestProblem(413, "body_too_large", detail, headers={"Connection": "close"})


class _Answer:
    """`send` that adds the request id and remembers whether the response has started."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send, self.request_id, self.started = send, request_id, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            MutableHeaders(scope=message)["X-Request-Id"] = self.request_id
        await self.send(message)


class _Replay:
    """`receive` that hands out the body once, then what really comes (the disconnect)."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _check_content_type(headers: Headers) -> None:
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    if kind.strip() != "application/json" or charset not in ("", "charset=utf-8"):
        raise RequestProblem(415, "unsupported_media_type", "send JSON in UTF-8 with 'Content-Type: application/json'")

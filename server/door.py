"""The door: what an overloaded service says to one more small request as soon as its head is read.

The gate would say the same, after a task, an exchange and a deadline were made for it: about a tenth of a search. Asked
for twice what it can do, a service would spend on refusals what its answers need. Here one costs a fraction of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus

from nestvec.server.errors import RequestProblem, reply
from nestvec.server.exchange import NO_ROUTE, id_of
from nestvec.server.logs import RequestLog
from nestvec.server.service import Service

_SMALL = 64 * 1024  # a larger body is not read over: the gate refuses it and closes
_TOLD_SECONDS = 1.0


class Door:
    """Refuses requests for one event loop; where there is room, or doubt, it lets them through to the gate."""

    def __init__(self, service: Service, requests: RequestLog | None = None) -> None:
        """`requests`: where a line about the refused ones goes, one a second at most."""
        self._service, self._requests = service, requests
        self._refused = 0

    @property
    def closing(self) -> bool:
        """Whether connections are to end with the answer that they wait for."""
        return self._service.stopping

    def enter(self) -> None:
        """Count a request that is let in, until the gate takes it over."""
        self._service.admission.coming += 1

    def leave(self) -> None:
        """Uncount a request that was answered before it came to the gate."""
        self._service.admission.coming -= 1

    def refusal(self, path: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
        """The whole answer to a request that finds no room; None where it is to go on.

        Health and metrics are always let through, traced requests for the sake of their span.
        """
        if not self._full or not path.startswith(b"/v1/"):
            return None
        known = dict(headers)
        length = known.get(b"content-length", b"0")
        if b"transfer-encoding" in known or b"expect" in known or not length.isdigit() or int(length[:9]) > _SMALL:
            return None
        return self._refusal(known)

    def refusal_of(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        """`refusal` of a small request that is there as a whole, and for the lane."""
        return self._refusal(headers) if self._full else None

    @property
    def _full(self) -> bool:
        return self._service.admission.full and not self._service.tracing.on

    def _refusal(self, headers: Mapping[bytes, bytes]) -> bytes:
        problem = self._service.admission.refuse()
        self._service.metrics.answered(NO_ROUTE, "any", problem.status, 0.0)
        self._note()
        return _written(problem, id_of(headers.get(b"x-request-id", b"")))

    def _note(self) -> None:
        if self._requests is None:
            return
        if not self._refused:
            asyncio.get_running_loop().call_later(_TOLD_SECONDS, self._tell)
        self._refused += 1

    def _tell(self) -> None:
        """One line for all of them: a line each would cost as much as the refusal."""
        assert self._requests is not None
        self._requests.refused(self._refused)
        self._refused = 0


def _written(problem: RequestProblem, id: str) -> bytes:
    """The problem as HTTP/1.1, made only where it differs from the last ones in more than the request's id."""
    head, body = _template(problem.status, problem.code, problem.detail, *problem.headers.items())
    given = id.encode()
    return head % (len(body) - len(_ID) + len(given), given) + body.replace(_ID, given)


_ID = b"@"  # in no id, and in no detail of a refusal


@lru_cache(maxsize=1024)
def _template(status: int, code: str, detail: str, *headers: tuple[str, str]) -> tuple[bytes, bytes]:
    """(head with places for the length and the id, body with _ID in it)."""
    answer = reply(RequestProblem(status, code, detail, headers=dict(headers)), _ID.decode())
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [name + b": " + value for name, value in answer.raw_headers if name != b"content-length"]
    return b"\r\n".join([*lines, b"content-length: %d", b"x-request-id: %s", b"", b""]), bytes(answer.body)

"""What HTTP itself costs: a Starlette route that decodes the body of a query and answers a constant.

Run as a process by benchmarks/rest.py: `python -m nestvec.benchmarks.bare PORT BYTES`.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class _Query(msgspec.Struct, forbid_unknown_fields=True):
    """The keys that the benchmark sends."""

    vector: list[float] | bytes
    k: int = 10


_DECODERS: dict[str, Any] = {
    "application/json": msgspec.json.Decoder(_Query),
    "application/msgpack": msgspec.msgpack.Decoder(_Query),
}


def _application(size: int) -> Starlette:
    constant = b"x" * size

    async def query(request: Request) -> Response:
        _DECODERS[request.headers["content-type"]].decode(await request.body())
        return Response(constant, media_type="application/json")

    return Starlette(routes=[Route("/v1/collections/{name}/query", query, methods=["POST"])])


def main(port: str, size: str) -> None:
    """Serve on a loopback port until killed, with the uvicorn settings of nestvec's own service."""
    uvicorn.run(
        _application(int(size)), port=int(port), log_level="warning", access_log=False, server_header=False, ws="none"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

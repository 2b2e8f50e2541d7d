"""Bodies and answers that are files: read and written in pieces, never whole in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

from fastapi import Request
from starlette.responses import StreamingResponse

from nestvec.engine.spool import Spool
from nestvec.server.service import Service

_PIECE = 1 << 20


async def spooled(service: Service, request: Request, suffix: str) -> tuple[Spool, bytes]:
    """The request's body in a file of the database, and its digest. The caller closes the spool."""
    spool = await service.run(lambda: Spool(service.database.path, suffix))
    digest = hashlib.blake2b(digest_size=32)
    try:
        waiting = bytearray()
        async for piece in request.stream():
            waiting += piece
            if len(waiting) >= _PIECE:
                await _append(service, spool, waiting, digest)
                waiting = bytearray()
        await _append(service, spool, waiting, digest)
        await service.run(spool.finish)
    except BaseException:
        # In a thread, and in whatever state the request is: the file must not stay.
        await asyncio.shield(asyncio.to_thread(spool.close))
        raise
    return spool, digest.digest()


async def _append(service: Service, spool: Spool, data: bytearray, digest: hashlib.blake2b) -> None:
    def work() -> None:
        digest.update(data)
        spool.append(bytes(data))

    await service.run(work)


def download(path: Path, name: str, media_type: str) -> StreamingResponse:
    """A file as the answer. Without ranges: they are the one costly thing that a client could ask of it."""
    size = path.stat().st_size
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
    }
    return StreamingResponse(_pieces(path), headers=headers, media_type=media_type)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece

"""API keys: make, list, revoke. For keys of scope admin that are bound to no collections."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path, Response

from nestvec.engine.keys import KeyInfo
from nestvec.server.models import KeyBody, KeyReply, KeysReply, NewKeyReply
from nestvec.server.openapi import problems
from nestvec.server.service import TheService

KeyName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", max_length=63, description="Name of the key.")]


async def create_key(service: TheService, body: KeyBody, response: Response) -> NewKeyReply:
    """Make a key. Its secret is in this reply and nowhere else; from now on every request needs a key."""
    info, secret = await service.run(lambda: service.database.create_key(body.name, body.scope, body.collections))
    response.headers["Cache-Control"] = "no-store"
    return NewKeyReply(secret=secret, **_reply(info).model_dump())


async def list_keys(service: TheService) -> KeysReply:
    """All keys of the database, without their secrets; not the one of the environment."""
    keys = await service.run(service.database.keys)
    return KeysReply(keys=[_reply(info) for info in keys])


async def revoke_key(service: TheService, key: KeyName) -> None:
    """Take a key away: no worker accepts it any more."""
    await service.run(lambda: service.database.revoke_key(key))


def _reply(info: KeyInfo) -> KeyReply:
    bound = None if info.collections is None else list(info.collections)
    return KeyReply(name=info.name, scope=info.scope, collections=bound, created=info.created)


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    path, tags = "/v1/keys", ["keys"]
    app.add_api_route(path, create_key, methods=["POST"], operation_id="create_key", tags=[*tags], status_code=201,
                      responses=problems(400, 409, 422))  # fmt: skip
    app.add_api_route(path, list_keys, methods=["GET"], operation_id="list_keys", tags=[*tags], responses=problems())
    app.add_api_route(path + "/{key}", revoke_key, methods=["DELETE"], operation_id="revoke_key", tags=[*tags],
                      status_code=204, responses=problems(404, 422))  # fmt: skip

"""List and switch aliases."""

from __future__ import annotations

from fastapi import FastAPI, Request

from nestvec.engine.aliases import AliasSwitch
from nestvec.server.models_admin import AliasesReply, SwitchesBody
from nestvec.server.openapi import problems
from nestvec.server.scopes import visible
from nestvec.server.service import TheService


async def list_aliases(service: TheService, request: Request) -> AliasesReply:
    """All aliases of collections that the caller's key may touch."""
    found = await service.run(service.database.aliases)
    return AliasesReply(aliases={alias: name for alias, name in found.items() if visible(request, name)})


async def switch_aliases(service: TheService, body: SwitchesBody) -> AliasesReply:
    """Let aliases name other collections, or nothing: all switches at one instant, or none."""
    switches = [AliasSwitch(each.alias, each.collection) for each in body.switches]
    return AliasesReply(aliases=await service.run(lambda: service.database.switch_aliases(switches)))


def add_routes(app: FastAPI) -> None:
    """Register the routes of this file."""
    path, tags = "/v1/aliases", ["aliases"]
    app.add_api_route(path, list_aliases, methods=["GET"], operation_id="list_aliases", tags=[*tags],
                      responses=problems())  # fmt: skip
    app.add_api_route(path, switch_aliases, methods=["POST"], operation_id="switch_aliases", tags=[*tags],
                      responses=problems(400, 404, 409, 422))  # fmt: skip

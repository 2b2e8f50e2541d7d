"""Commands about names and doors: aliases of collections, API keys of the service."""

from __future__ import annotations

from typing import Annotated

import typer

from nestvec.cli.completion import collection_names
from nestvec.cli.options import DEFAULT_DB, Db, Json, comma_list
from nestvec.cli.output import note, print_json, print_line, print_result, print_table
from nestvec.cli.targets import opened

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys of the service.")


def aliases(
    point: Annotated[
        list[str] | None, typer.Option("--set", metavar="ALIAS=COLLECTION", help="Let an alias name a collection.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", metavar="ALIAS", help="Take an alias away.")] = None,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """List the aliases; with --set and --drop (each as often as needed) change them first, all at once or none."""
    from nestvec.engine.aliases import AliasSwitch
    from nestvec.errors import InvalidInput

    switches = []
    for given in point or ():
        alias, equals, collection = given.partition("=")
        if not equals:
            raise InvalidInput(f"--set must be ALIAS=COLLECTION, such as live=docs-2; got {given!r}")
        switches.append(AliasSwitch(alias, collection))
    switches += [AliasSwitch(alias, None) for alias in drop or ()]
    with opened(db) as database:
        named = database.switch_aliases(switches) if switches else database.aliases()
    if json:
        print_json(named)
    else:
        print_table(["alias", "collection"], [[alias, collection] for alias, collection in named.items()])


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What to call the key.")],
    scope: Annotated[str, typer.Option(help="read, write or admin; each includes the ones before.")] = "read",
    collections: Annotated[
        str | None,
        typer.Option(help="The only collections it may touch: a,b. [default: all]", autocompletion=collection_names),
    ] = None,
    db: Db = DEFAULT_DB,
    json: Json = False,
) -> None:
    """Make a key. Its secret is printed now and never again; send it as 'Authorization: Bearer SECRET'."""
    with opened(db) as database:
        info, secret = database.create_key(name, scope, comma_list(collections))
    if json:
        print_json({"secret": secret, "key": info})
        return
    print_line(secret)
    note(f"key {name!r} of scope {info.scope}: keep the secret now, only its digest is stored")


@keys.command("list")
def list_keys(db: Db = DEFAULT_DB, json: Json = False) -> None:
    """List the keys, without their secrets."""
    with opened(db) as database:
        infos = database.keys()
    if json:
        print_json(infos)
        return
    rows = [[info.name, info.scope, ", ".join(info.collections or ()) or "all", info.created] for info in infos]
    print_table(["name", "scope", "collections", "created"], rows)


@keys.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Name of the key.")], db: Db = DEFAULT_DB, json: Json = False
) -> None:
    """Take a key away: a running service refuses it from the next request on."""
    with opened(db) as database:
        database.revoke_key(name)
    print_result(json, {"revoked": name}, f"revoked {name}")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(aliases)
    app.add_typer(keys, name="keys")

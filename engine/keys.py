"""API keys: who may do what with a database that is served. The ledger keeps only the SHA-256 of each secret."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from nestvec.engine.schema import check_name
from nestvec.engine.storage.ledger import Ledger, rows_of
from nestvec.errors import Conflict, InvalidInput, NotFound

Scope = Literal["read", "write", "admin"]
"""What a key may do; each includes the ones before it."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_KEYS = 1000  # every one of them is compared with the key of every request
MAX_COLLECTIONS = 1000
_SECRET_BYTES = 32
_PREFIX = "nestvec_"


@dataclass(frozen=True)
class KeyInfo:
    """A key without its secret. `collections`: the only ones it may touch, None for all. `created`: ISO 8601, UTC."""

    name: str
    scope: Scope
    collections: tuple[str, ...] | None
    created: str


def digest(secret: bytes) -> bytes:
    """What is stored of a secret, and compared."""
    return hashlib.sha256(secret).digest()


def create_key(ledger: Ledger, name: str, scope: str, collections: Iterable[str] | None = None) -> tuple[KeyInfo, str]:
    """Make a key; (its facts, its secret). The secret is shown here and never again.

    Raises InvalidInput, Conflict where a key has this name.
    """
    info = KeyInfo(check_name(name), _check_scope(scope), _check_collections(collections), _now())
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    bound = None if info.collections is None else json.dumps(info.collections)
    with ledger.write() as connection:
        names = [row[0] for row in rows_of(connection, "SELECT name FROM api_key")]
        if name in names:
            raise Conflict(f"there is a key {name!r} already; revoke it first, or choose another name")
        if len(names) >= MAX_KEYS:
            raise InvalidInput(f"a database has at most {MAX_KEYS} keys; revoke one that nobody uses")
        connection.execute(
            "INSERT INTO api_key(name, digest, scope, collections, created) VALUES (?, ?, ?, ?, ?)",
            (name, digest(secret.encode()), scope, bound, info.created),
        )
    return info, secret


def revoke_key(ledger: Ledger, name: str) -> None:
    """Take a key away, at once for every process. Raises NotFound."""
    with ledger.write() as connection:
        connection.execute("DELETE FROM api_key WHERE name=?", (name,))
        if not connection.changes():
            raise NotFound(f"there is no key {name!r}")


def all_keys(ledger: Ledger) -> list[KeyInfo]:
    """Every key, by name."""
    return [info for info, _ in key_digests(ledger)]


def key_digests(ledger: Ledger) -> list[tuple[KeyInfo, bytes]]:
    """Every key and the SHA-256 of its secret, by name."""
    query = "SELECT name, scope, collections, created, digest FROM api_key ORDER BY name"
    with ledger.read() as connection:
        rows = rows_of(connection, query)
    return [
        (KeyInfo(name, scope, None if bound is None else tuple(json.loads(bound)), created), bytes(stored))
        for name, scope, bound, created, stored in rows
    ]


def _check_scope(scope: str) -> Scope:
    if scope not in SCOPES:
        raise InvalidInput(f"a key's scope is one of {', '.join(SCOPES)}; got {scope!r}")
    return scope


def _check_collections(collections: Iterable[str] | None) -> tuple[str, ...] | None:
    if collections is None:
        return None
    if isinstance(collections, str):
        raise InvalidInput(f"a key's collections are a list of names; got the text {collections!r}")
    names = tuple(sorted({check_name(name) for name in collections}))
    if not 1 <= len(names) <= MAX_COLLECTIONS:
        raise InvalidInput(f"a key is bound to 1 to {MAX_COLLECTIONS} collections, or (None) to all; got {len(names)}")
    return names


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

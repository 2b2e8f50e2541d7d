"""Who is asking: API keys, and whose Host names are answered while there are none."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident
from urllib.parse import urlsplit

from nestvec.engine.database import Database
from nestvec.engine.keys import SCOPES, Scope, digest, key_digests
from nestvec.server.errors import RequestProblem
from nestvec.server.settings import Settings, is_loopback

_MINUTE = 60.0
_MOST_ADDRESSES = 10_000
_ASK = "this needs an API key: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"


@dataclass(frozen=True)
class Identity:
    """Whose key a request carries. `collections`: the only ones it may touch, None for all."""

    name: str
    scope: Scope
    collections: frozenset[str] | None

    def may(self, scope: Scope) -> bool:
        """Whether its scope includes `scope`."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class Auth:
    """Knows the keys: those of the database, as they are at each request, and the one of the environment."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._ledger = database.ledger
        self._host = settings.host
        self._own: list[tuple[bytes, Identity]] = []
        if settings.api_key is not None:
            secret = settings.api_key.get_secret_value().encode()
            self._own = [(digest(secret), Identity("environment", "admin", None))]
        self._known, self._version = self._own, (0, (0, 0))
        self._failures = _Failures(max(1, settings.auth_failures_per_minute // settings.workers)
                                   if settings.auth_failures_per_minute else 0)  # fmt: skip
        # Once there was a key, or strangers can connect, the door never opens again by the last key's revocation.
        self.needed = not is_loopback(settings.host)
        self.refresh()

    def identify(self, headers: Mapping[bytes, bytes], client: str, server: str) -> Identity | None:
        """Whose request this is, from the address `client` to our address `server`; None where no key is needed.

        Raises 401, 403 for a foreign Host where no key is needed, 429 for an address that has failed too often.
        """
        self.refresh()
        try:
            return self.recognise(headers, client, server)
        except RequestProblem as problem:
            if problem.status == 401:
                self._failures.add(client)
            raise

    def recognise(self, headers: Mapping[bytes, bytes], client: str, server: str) -> Identity | None:
        """`identify` by the keys of the last `refresh`, and without remembering who failed."""
        if not self.needed:
            self._check_host(headers, server)
            return None
        self._failures.check(client)
        # Digests have equal length, so the comparison tells nothing about the keys'; all are compared, found or not.
        given = _given(headers)
        seen = digest(given or b"")
        found = None
        for stored, identity in self._known:
            if hmac.compare_digest(seen, stored):
                found = identity
        if given is None or found is None:
            raise RequestProblem(401, "unauthorized", _ASK, headers={"WWW-Authenticate": "Bearer"})
        return found

    def _check_host(self, headers: Mapping[bytes, bytes], server: str) -> None:
        """403 where a browser was led here by a foreign name (DNS rebinding) or page."""
        if not _are_own(headers.get(b"host", b""), headers.get(b"origin", b""), self._host, server):
            detail = "without an API key this answers to localhost and its own address only; make a key, or use those"
            raise RequestProblem(403, "foreign_host", detail)

    def refresh(self) -> None:
        """Read the keys again if anybody has written to the ledger since; each thread has a version of its own."""
        version = (get_ident(), self._ledger.data_version())
        if version == self._version:
            return
        stored = [
            (secret, Identity(info.name, info.scope, None if info.collections is None else frozenset(info.collections)))
            for info, secret in key_digests(self._ledger)
        ]
        self._known, self._version = [*self._own, *stored], version
        self.needed = self.needed or bool(self._known)


def _given(headers: Mapping[bytes, bytes]) -> bytes | None:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key")


@lru_cache(maxsize=1024)
def _are_own(host: bytes, origin: bytes, *own: str) -> bool:
    """Whether the headers Host and Origin, b"" for none, name a loopback address or one of our own."""
    named = [b"//" + host if host else b"", origin]
    return all(_is_own(url.decode("latin-1"), *own) for url in named if url)


def _is_own(url: str, *own: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return name in own or is_loopback(name)


class _Failures:
    """Failed keys by address, over the last minute; the addresses that have been quiet longest are forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """429 for an address that failed too often. Its right keys too, or guessing would go on unhindered."""
        times = self._times.get(address)
        if not self._most or times is None or len(times) < self._most:
            return
        wait = times[-self._most] + _MINUTE - time.monotonic()
        if wait > 0:
            detail = f"{self._most} requests of this address had no valid key within a minute; wait"
            raise RequestProblem(429, "too_many_failures", detail, headers={"Retry-After": str(int(wait) + 1)})

    def add(self, address: str) -> None:
        """Remember a failure."""
        if self._most:
            times = [*self._times.pop(address, []), time.monotonic()]
            self._times[address] = times[-self._most :]
            if len(self._times) > _MOST_ADDRESSES:
                self._times.popitem(last=False)

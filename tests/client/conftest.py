"""A real service on a free port, and the two clients made to look alike."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

import nestvec
from nestvec.client.steps import Target
from nestvec.server.app import create_app
from nestvec.server.settings import Settings

DIMS = 8
KEY = "the key of the tests"
Plans = list[int | str]


def vectors(n: int) -> np.ndarray:
    """n random vectors, the same every time."""
    return np.random.default_rng(7).standard_normal((n, DIMS)).astype(np.float32)


class Service:
    """A database that is served: `database` is it in process, `refusals` are statuses to answer with before work."""

    def __init__(self, database: nestvec.Database, url: str, refusals: Plans) -> None:
        self.database, self.url, self.refusals = database, url, refusals
        self.seen: list[str] = []


class Refusing:
    """An application that answers the next requests with planned statuses; then it is the real one."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.service.seen.append(f"{scope['method']} {scope['path']}")
            if self.service.refusals:
                plan = self.service.refusals.pop(0)
                if plan == "stall":
                    await asyncio.sleep(1)
                else:
                    headers = [(b"retry-after", b"0"), (b"content-type", b"application/problem+json")]
                    await send({"type": "http.response.start", "status": plan, "headers": headers})
                    await send({"type": "http.response.body", "body": b'{"code":"busy","detail":"full"}'})
                    return
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("served") / "db"
    with nestvec.open(path) as database, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        service = Service(database, f"http://127.0.0.1:{listener.getsockname()[1]}", [])
        app = create_app(database, Settings(api_key=KEY, max_batch=50, threads=2))
        server = uvicorn.Server(uvicorn.Config(Refusing(app, service), log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.02)
            assert server.started
            yield service
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(autouse=True)
def empty(service: Service) -> Iterator[None]:
    """Every test begins with no collections and no plans."""
    yield
    service.refusals.clear()
    service.seen.clear()
    database = service.database
    if named := database.aliases():
        database.switch_aliases([nestvec.AliasSwitch(alias, None) for alias in named])
    for info in database.collections():
        database.delete_collection(info.name)


class Settled:
    """A client whose calls are over when they return, whichever it is."""

    def __init__(self, inner: object, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop

    def __getattr__(self, name: str) -> object:
        found = getattr(self._inner, name)
        return self._settling(found) if callable(found) else found

    def _settling(self, method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            value = method(*args, **kwargs)
            if inspect.isawaitable(value):
                value = self._loop.run_until_complete(value)
            if isinstance(value, AsyncIterator):
                value = self._loop.run_until_complete(_all(value))
            return Settled(value, self._loop) if isinstance(value, Target) else value

        return call


async def _all(items: AsyncIterator[object]) -> list[object]:
    return [item async for item in items]


Connect = Callable[..., object]


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest, service: Service) -> Iterator[Connect]:
    """Makes clients of the kind that this run is about; they are closed at the end."""
    kind = nestvec.Client if request.param == "blocking" else nestvec.AsyncClient
    loop = asyncio.new_event_loop()
    made: list[Settled] = []

    def make(url: str = service.url, **options: object) -> Settled:
        made.append(Settled(kind(url, **{"api_key": KEY, **options}), loop))
        return made[-1]

    yield make
    for client in made:
        client.close()
    loop.close()


@pytest.fixture
def client(connect: Connect) -> object:
    return connect()


class Proxy:
    """A TCP proxy before the service. Its plan says what becomes of the next connections: "lose" passes the request on
    and closes before the answer, "refuse" closes at once; without a plan everything passes."""

    def __init__(self, upstream: str, plan: Plans) -> None:
        host, port = upstream.removeprefix("http://").split(":")
        self._upstream, self.plan = (host, int(port)), plan
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near, self.plan.pop(0) if self.plan else "pass")).start()

    def _carry(self, near: socket.socket, plan: str) -> None:
        with near, socket.create_connection(self._upstream) as far:
            if plan == "refuse":
                return
            threading.Thread(target=_pump, args=(near, far), daemon=True).start()
            if plan == "lose":
                far.recv(1)
                near.shutdown(socket.SHUT_RDWR)  # closing alone would wait for the thread that still reads it
            else:
                _pump(far, near)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    proxy = Proxy(service.url, [])
    yield proxy
    proxy.close()


def filled(database: nestvec.Database, n: int = 40, name: str = "docs", **config: object) -> nestvec.Collection:
    """A collection of n records with payloads and texts."""
    collection = database.create_collection(name, **{"dims": DIMS, "granularities": (4, DIMS), **config})
    rows = vectors(n)
    collection.upsert([nestvec.Record(f"r{i}", rows[i], {"n": i, "even": i % 2 == 0}, f"text {i}") for i in range(n)])
    return collection


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"

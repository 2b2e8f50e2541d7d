"""What carries operations out over httpx2: one that blocks, one for asyncio. Only this code differs between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx2

from nestvec.client.steps import Answer, Call, Item, Lost, Operation, Pause, Reply, Stream, Target
from nestvec.errors import InvalidInput

P = ParamSpec("P")
H = TypeVar("H")
S = TypeVar("S", bound=Target)
T = TypeVar("T")

_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


def blocking(operation: Callable[Concatenate[S, P], Operation[T]]) -> Callable[Concatenate[S, P], T]:
    """The operation as a method that returns when it is done."""

    @wraps(operation)
    def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._runner.run(operation(self, *args, **kwargs))
        return result

    return method


def awaitable(
    operation: Callable[Concatenate[S, P], Operation[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The operation as a coroutine method."""

    @wraps(operation)
    async def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await self._runner.run(operation(self, *args, **kwargs))
        return result

    return method


def iterated(stream: Callable[Concatenate[S, P], Stream[T]]) -> Callable[Concatenate[S, P], Iterator[T]]:
    """The stream as a method that returns an iterator."""

    @wraps(stream)
    def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items: Iterator[T] = self._runner.iterate(stream(self, *args, **kwargs))
        return items

    return method


def async_iterated(stream: Callable[Concatenate[S, P], Stream[T]]) -> Callable[Concatenate[S, P], AsyncIterator[T]]:
    """The stream as a method that returns an asynchronous iterator."""

    @wraps(stream)
    def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        items: AsyncIterator[T] = self._runner.iterate(stream(self, *args, **kwargs))
        return items

    return method


def returning(
    operation: Callable[Concatenate[S, P], Operation[T]], handle: Callable[[Any, T], H]
) -> Callable[Concatenate[S, P], Operation[H]]:
    """The operation, with its result made into a handle of the client that runs it."""

    @wraps(operation)
    def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Operation[H]:
        return handle(self, (yield from operation(self, *args, **kwargs)))

    return method


class BlockingRunner:
    """Carries steps out in the calling thread. Safe to use from many threads."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._http = httpx2.Client(base_url=checked_url(url), headers=headers)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self, operation: Operation[T]) -> T:
        """The operation's result."""
        answer: Answer = None
        while True:
            try:
                step = operation.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = self._do(step)

    def iterate(self, stream: Stream[T]) -> Iterator[T]:
        """The stream's items, as they come."""
        answer: Answer = None
        while True:
            try:
                step = stream.send(answer)
            except StopIteration:
                return
            if isinstance(step, Item):
                yield step.value
                answer = None
            else:
                answer = self._do(step)

    def _do(self, step: Call | Pause) -> Answer:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            response = self._http.send(self._request(step), stream=True)
            try:
                if step.save_to is None or response.status_code >= 400:
                    return Reply(response.status_code, response.headers, response.read())
                with step.save_to.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
                return Reply(response.status_code, response.headers, b"")
            finally:
                response.close()
        except httpx2.RequestError as error:
            return lost(error)

    def _request(self, call: Call) -> httpx2.Request:
        content = call.content if isinstance(call.content, bytes) else call.content()
        return self._http.build_request(
            call.method, call.path, content=content, headers=call.headers, timeout=call.timeout
        )


class AsyncRunner:
    """Carries steps out on the running event loop."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._http = httpx2.AsyncClient(base_url=checked_url(url), headers=headers)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, operation: Operation[T]) -> T:
        """The operation's result."""
        answer: Answer = None
        while True:
            try:
                step = operation.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = await self._do(step)

    async def iterate(self, stream: Stream[T]) -> AsyncIterator[T]:
        """The stream's items, as they come."""
        answer: Answer = None
        while True:
            try:
                step = stream.send(answer)
            except StopIteration:
                return
            if isinstance(step, Item):
                yield step.value
                answer = None
            else:
                answer = await self._do(step)

    async def _do(self, step: Call | Pause) -> Answer:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            response = await self._http.send(self._request(step), stream=True)
            try:
                if step.save_to is None or response.status_code >= 400:
                    return Reply(response.status_code, response.headers, await response.aread())
                with step.save_to.open("wb") as file:
                    async for chunk in response.aiter_bytes():
                        file.write(chunk)
                return Reply(response.status_code, response.headers, b"")
            finally:
                await response.aclose()
        except httpx2.RequestError as error:
            return lost(error)

    def _request(self, call: Call) -> httpx2.Request:
        content = call.content if isinstance(call.content, bytes) else _async_chunks(call.content())
        return self._http.build_request(
            call.method, call.path, content=content, headers=call.headers, timeout=call.timeout
        )


async def _async_chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def lost(error: httpx2.RequestError) -> Lost:
    """What a failed exchange means: whether the request may have arrived."""
    late = isinstance(error, httpx2.TimeoutException)
    reason = "the time was up" if late else str(error) or type(error).__name__
    return Lost(reason, not isinstance(error, _NEVER_SENT), late)


def checked_url(url: str) -> httpx2.URL:
    """The address of a service, or InvalidInput."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(f"the address of a service is such as http://127.0.0.1:8765; got {url!r}")
    return parsed

"""Work for several threads whose results are taken by one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_threads(jobs: Iterable[Job], work: Callable[[Job], Result], threads: int) -> Iterator[tuple[Job, Result]]:
    """(job, its result) as they are done; the first error of a job is raised and no further job begun.

    The threads are daemons: a Ctrl-C does not wait for what a slow server has still to say.
    """
    left, lock, stop = iter(jobs), threading.Lock(), threading.Event()
    done: queue.Queue[tuple[Job, Result] | BaseException | None] = queue.Queue()

    def take() -> None:
        try:
            while not stop.is_set():
                with lock:
                    job = next(left)
                done.put((job, work(job)))
        except StopIteration:
            done.put(None)
        except BaseException as error:  # whatever it is belongs to the caller
            done.put(error)

    for _ in range(threads):
        threading.Thread(target=take, daemon=True).start()
    running = threads
    try:
        while running:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                yield found
    finally:
        stop.set()

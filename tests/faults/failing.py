"""One verb with failing calls, in a process that failing.so was preloaded into; see test_failing_calls."""

from __future__ import annotations

import ctypes
import errno
import json
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from faultlib import Model, Request, amount, apply, check_search, check_tidy, match, record_of, send
from writers import build

import nestvec
from nestvec.engine import compaction
from nestvec.engine.database import Database

CALLS = {
    "write": errno.EIO,
    "fsync": errno.EIO,
    "fdatasync": errno.EIO,
    "open": errno.EMFILE,
    "rename": errno.EIO,
    "mmap": errno.ENOMEM,
    "read": errno.EIO,
}
shim = ctypes.CDLL(None)
ROWS = amount(220, 1100)
compaction.MIN_TRAINING_ROWS = ROWS - 100  # a slice is about calls, of which small files need as many kinds
Work = Callable[[Database], object]


def prepare(path: Path) -> Model:
    """A generation, dead rows, growing rows, a snapshot."""
    model: Model = {}
    with nestvec.open(path) as database:
        collection = database.create_collection("c", dims=8, metric="dot", bm25=True)
        for start in (0, ROWS // 2):
            request = [(f"r{i}", 1000 + i) for i in range(start, start + ROWS // 2)]
            send(collection, request)
            model = apply(model, request)
        collection.seal()
        for request in ([(f"r{i}", 5000 + i) for i in range(20)], [(f"r{i}", 0) for i in range(30, 40)]):
            send(collection, request)
            model = apply(model, request)
        database.snapshot("c")
    return model


def search_anew(database: Database) -> None:
    """A search that has to open every file."""
    database.collection("c").part.keeper.forget()
    database.collection("c").search([1.0] * 8, k=20)


def verb_of(name: str) -> tuple[Request, Work]:
    """(what it writes, how)."""
    written: Request = [(f"r{i}", 9000 + i) for i in range(70, 110)]
    if name == "upsert":
        return written, lambda database: send(database.collection("c"), written)
    if name == "delete":
        gone = [(f"r{i}", 0) for i in range(50, 60)]
        return gone, lambda database: send(database.collection("c"), gone)
    if name == "build":
        new = [(f"new{i}", 9000 + i) for i in range(60)]
        return new, lambda database: build(database.collection("c"), new)
    works: dict[str, Work] = {
        "search": search_anew,
        "seal": lambda database: database.collection("c").seal(),
        "compact": lambda database: database.collection("c").compact(retrain=True),
        "snapshot": lambda database: database.snapshot("c"),
        "restore": lambda database: database.restore(database.snapshots()[0].name, "other"),
        "create": lambda database: database.create_collection("made", dims=2),
    }
    return [], works[name]


def case(path: Path, model: Model, verb: str, arm: Callable[[], None]) -> bool:
    """Whether the verb failed. Every promise is checked before and after the store is opened anew."""
    if verb == "open":
        return opened(path, model, arm)
    request, work = verb_of(verb)
    after = apply(model, request)
    with nestvec.open(path) as database:
        check_search(database.collection("c"), model)  # every file is open; that the copy is one needs no more
        failed = attempt(lambda: work(database), arm)
        held = match(database.collection("c"), [model, after] if failed else [after])
        if request:  # what is said to be unknown may be sent again
            held = again(database, verb, request, work, held)
        elif failed:
            with suppress(
                nestvec.Conflict, nestvec.Damaged
            ):  # it failed after its files had got their name: then it is whole
                work(database)
        held = match(database.collection("c"), [held])
        database.collection("c").upsert([record_of("r1", 99)])
        held = apply(held, [("r1", 99)])
    settled(path, held)
    return failed


def again(database: Database, verb: str, request: Request, work: Work, held: Model) -> Model:
    after = apply(held, request)
    if verb != "build" or held != after:
        work(database)
    return after


def settled(path: Path, model: Model) -> None:
    with nestvec.open(path) as database:
        assert database.damaged() == []
        match(database.collection("c"), [model])
        assert all(report.ok for report in database.verify()), database.verify()
        assert {one.name for one in database.collections()} <= {"c", "made", "other"}
    check_tidy(path)


def opened(path: Path, model: Model, arm: Callable[[], None]) -> bool:
    """A database that could not be opened, or only without one collection, is whole when it is opened again."""
    reasons: list[str] = []

    def open_and_close() -> None:
        with nestvec.open(path) as database:
            reasons.extend(one.damage for one in database.damaged())

    failed = attempt(open_and_close, arm)
    settled(path, model)
    return failed or bool(reasons)


def attempt(work: Callable[[], object], arm: Callable[[], None]) -> bool:
    """Whether it failed, and cleanly: with an error of ours, or the system's own word for it."""
    arm()
    try:
        work()
    except (nestvec.NestvecError, OSError):
        return True
    finally:
        shim.fault_disarm()
    return False


def main() -> None:
    home, verb, first, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    source = home / "prepared"
    model = prepare(source)
    totals = {"fired": 0, "failed": 0, "wrong": 0} | {f"{call} fired": 0 for call in CALLS}
    for forever in (0, 1):
        for number, (call, code) in enumerate(CALLS.items()):
            n = 1
            while one(home, source, model, verb, (number, n, code, forever), totals):
                totals[f"{call} fired"] += 1
                n += (4 if forever else 1) if n < first else step
    print(json.dumps(totals))
    sys.exit(totals["wrong"] > 0)


def one(
    home: Path, source: Path, model: Model, verb: str, fault: tuple[int, int, int, int], totals: dict[str, int]
) -> bool:
    """Run one case; whether the fault fired."""
    path = home / "db"
    shutil.copytree(source, path)
    try:
        failed = case(path, model, verb, lambda: shim.fault_arm(str(path).encode(), *fault))
    except Exception:
        totals["wrong"] += 1
        failed = True
        where = f"{verb}: {list(CALLS)[fault[0]]} number {fault[1]}, errno {fault[2]}, {'ever' if fault[3] else 'once'}"
        print(f"WRONG {where}\n{traceback.format_exc()}", file=sys.stderr)
    finally:
        shutil.rmtree(path)
    if not shim.fault_fired():
        return False
    totals["fired"] += 1
    totals["failed"] += failed
    return True


main()

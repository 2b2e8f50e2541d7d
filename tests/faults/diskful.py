"""Writing until there is no room, in a process of its own; see test_disk_full."""

from __future__ import annotations

from pathlib import Path

from faultlib import ClientLog, Model, match, random_request, record_of, send
from writers import build, carry_out

import nestvec
from nestvec.engine.database import Database


def fill_until_refused(database: Database, log: Path) -> tuple[int, Model]:
    """Write, seal, build and snapshot until each was refused for want of room; (refusals, what is there)."""
    import numpy as np

    rng, client, version, model = np.random.default_rng(1), ClientLog(log), 1, Model()
    collection = database.create_collection("c", dims=8, metric="dot", bm25=True, exist_ok=True)
    refused = 0
    for turn in range(4000):
        version += 20
        request = random_request(rng, version, 4000)
        if turn % 10 == 9:
            request = [(f"built{version}-{i}", version) for i in range(200)]
        try:
            if turn % 40 == 25:
                collection.seal()
            if turn % 40 == 35:
                database.snapshot("c")
            work = build if request[0][0].startswith("built") else send
            carry_out(client, request, lambda r, work=work: work(collection, r))  # type: ignore[misc]
        except (nestvec.NestvecError, OSError) as error:
            assert says_why(error), repr(error)  # noqa: PT017
            refused += 1
            model = settle(collection, client, model)
            if refused == 8:
                return refused, model
    raise AssertionError("the disk was never full")


def says_why(error: Exception) -> bool:
    """No room, or an outcome that is not known: nothing else is to be heard."""
    words = ("no space", "disk I/O error", "commit failed", "too large", "No space", "could not create")
    return isinstance(error, nestvec.NoSpace | nestvec.OutcomeUnknown) or any(word in str(error) for word in words)


def settle(collection: nestvec.Collection, client: ClientLog, model: Model) -> Model:
    """Reads go on; the log starts anew from what is there."""
    model = match(collection, client.outcomes(model))
    client.path.unlink(missing_ok=True)
    return model


def resume(database: Database, model: Model) -> Model:
    """There is room again: everything works, without a restart and after it."""
    collection = database.collection("c")
    match(collection, [model])
    collection.upsert([record_of("after", 5)])
    model = {**model, "after": 5}
    build(collection, [(f"more{i}", 7) for i in range(50)])
    model |= {f"more{i}": 7 for i in range(50)}
    collection.seal()
    collection.compact()
    name = database.snapshot("c").name
    match(collection, [model])
    match(database.restore(name, "copy"), [model])
    path = database.path
    database.close()
    with nestvec.open(path) as again:
        match(again.collection("c"), [model])
        assert all(report.ok for report in again.verify()), again.verify()
    return model

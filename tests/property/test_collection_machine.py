"""Any order of verbs leaves a collection equal to a dictionary searched by brute force."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from faultlib import amount
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray
from writers import dying_upsert, start

import nestvec
from nestvec import Batch, Record

DIMS = 4
IDS = st.sampled_from([f"id{i}" for i in range(12)])
VECTORS = st.lists(st.integers(-8, 8), min_size=DIMS, max_size=DIMS).map(lambda v: np.array(v, np.float32))


class Machine(RuleBasedStateMachine):
    """`model` holds id -> (vector, payload), oldest write first."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="nestvec-machine-"))
        self.model: dict[str, tuple[NDArray[np.float32], dict[str, int]]] = {}
        self.count = 0
        self.built = 0
        self.snapshots: list[tuple[str, dict[str, tuple[NDArray[np.float32], dict[str, int]]]]] = []
        self.named = False

    @initialize(metric=st.sampled_from(["dot", "l2"]))
    def create(self, metric: nestvec.engine.schema.Metric) -> None:
        self.metric = metric
        self.database = nestvec.open(self.path)
        self.collection = self.database.create_collection("c", dims=DIMS, metric=metric)

    def _set(self, id: str, vector: NDArray[np.float32]) -> Record:
        self.count += 1
        self.model.pop(id, None)
        self.model[id] = (vector, {"n": self.count, "digit": self.count % 10})
        return Record(id, vector, {"n": self.count, "digit": self.count % 10})

    @rule(items=st.dictionaries(IDS, VECTORS, min_size=1, max_size=5))
    def upsert(self, items: dict[str, NDArray[np.float32]]) -> None:
        self.collection.upsert([self._set(id, vector) for id, vector in items.items()])

    @rule(ids=st.sets(IDS, max_size=4))
    def delete(self, ids: set[str]) -> None:
        assert self.collection.delete(sorted(ids)) == sum(self.model.pop(id, None) is not None for id in ids)

    @rule(remainder=st.integers(0, 4))
    def delete_by_filter(self, remainder: int) -> None:
        """One in five records, by the last digit of their number."""
        digits = {"field": "digit", "in": [remainder, remainder + 5]}
        doomed = [id for id, (_, payload) in self.model.items() if payload["n"] % 5 == remainder]
        assert self.collection.count(filter=digits) == len(doomed)
        assert self.collection.delete(filter=digits) == len(doomed)
        for id in doomed:
            del self.model[id]

    @rule(vectors=st.lists(VECTORS, min_size=1, max_size=4))
    def build(self, vectors: list[NDArray[np.float32]]) -> None:
        ids = [f"built{self.built + i}" for i in range(len(vectors))]
        self.built += len(vectors)
        records = [self._set(id, vector) for id, vector in zip(ids, vectors, strict=True)]
        payloads = [record.payload or {} for record in records]
        assert self.collection.build([Batch(0, ids, np.stack(vectors), None, payloads)]).rows == len(vectors)

    @rule()
    def seal(self) -> None:
        self.collection.seal()

    @rule(retrain=st.booleans())
    def compact(self, retrain: bool) -> None:
        self.collection.compact(retrain=retrain)

    @rule()
    def reopen(self) -> None:
        self.database.close()
        self.database = nestvec.open(self.path, create=False)
        self.collection = self.database.collection("c")

    @rule(items=st.dictionaries(IDS, VECTORS, min_size=1, max_size=5), committed=st.booleans())
    def kill(self, items: dict[str, NDArray[np.float32]], committed: bool) -> None:
        """Another process dies right before or after the commit of an upsert; this one goes on."""
        records = [self._set(id, vector) if committed else Record(id, vector) for id, vector in items.items()]
        process = start(dying_upsert, self.path, records, "upsert-committed" if committed else "upsert-before-commit")
        process.join()
        assert process.exitcode == -9

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.database.snapshot("c").name, dict(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, 10))
    def restore(self, which: int) -> None:
        """The collection is exchanged for one of its snapshots."""
        name, model = self.snapshots[which % len(self.snapshots)]
        self.switch(None)
        self.database.delete_collection("c")
        self.collection, self.model = self.database.restore(name, "c"), dict(model)

    @rule(name=st.sampled_from(["c", None]))
    def switch(self, name: str | None) -> None:
        """An alias follows the collection, or names nothing."""
        if name is not None or self.named:
            self.database.switch_aliases([nestvec.AliasSwitch("live", name)])
        self.named = name is not None
        assert self.database.aliases() == ({"live": "c"} if self.named else {})
        if self.named:
            assert self.database.collection("live").count() == len(self.model)

    @rule(query=VECTORS, k=st.integers(1, 20))
    def search_exactly(self, query: NDArray[np.float32], k: int) -> None:
        exact = self.collection.search(query, k=k, exact=True)
        assert [(hit.id, hit.score) for hit in exact] == [
            (hit.id, hit.score) for hit in self.collection.search(query, k=k)
        ]

    @rule(query=VECTORS, k=st.integers(1, 20))
    def search(self, query: NDArray[np.float32], k: int) -> None:
        hits = self.collection.search(query, k=k)
        vectors = np.array([vector for vector, _ in self.model.values()], np.float32).reshape(-1, DIMS)
        scores = vectors @ query if self.metric == "dot" else -np.square(vectors - query).sum(axis=1)
        best = np.argsort(-scores, kind="stable")[:k]
        assert [hit.id for hit in hits] == [list(self.model)[i] for i in best]
        assert [hit.payload for hit in hits] == [list(self.model.values())[i][1] for i in best]
        assert [hit.score for hit in hits] == scores[best].tolist()
        with self.collection.reader() as reader:
            rows, found = reader.search(query, k=k)
            assert (rows.tolist(), found.tolist()) == (best.tolist(), scores[best].tolist())
            assert reader.ids(rows) == [hit.id for hit in hits]

    @rule(query=VECTORS, k=st.integers(1, 20), least=st.integers(0, 9), most=st.integers(0, 9))
    def search_filtered(self, query: NDArray[np.float32], k: int, least: int, most: int) -> None:
        hits = self.collection.search(query, k=k, filter={"field": "digit", "range": {"gte": least, "lte": most}})
        found = {id: vector for id, (vector, payload) in self.model.items() if least <= payload["digit"] <= most}
        vectors = np.array([*found.values()], np.float32).reshape(-1, DIMS)
        scores = vectors @ query if self.metric == "dot" else -np.square(vectors - query).sum(axis=1)
        assert [hit.id for hit in hits] == [list(found)[i] for i in np.argsort(-scores, kind="stable")[:k]]
        assert hits.filter.matching == len(found)

    @rule(limit=st.integers(1, 5))
    def scroll(self, limit: int) -> None:
        page = self.collection.scroll(limit=limit)
        ids = [record.id for record in page]
        while page.cursor is not None:
            page = self.collection.scroll(limit=limit, cursor=page.cursor)
            ids += [record.id for record in page]
        assert ids == list(self.model)

    @invariant()
    def everything_is_there(self) -> None:
        assert self.collection.count() == len(self.model)
        records = self.collection.get(list(self.model), with_vector=True)
        assert [(record.id, record.payload) for record in records] == [(id, v[1]) for id, v in self.model.items()]
        for record in records:
            np.testing.assert_array_equal(record.vector, self.model[record.id][0])

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()
        shutil.rmtree(self.path)


Machine.TestCase.settings = settings(
    max_examples=amount(25, 300),
    stateful_step_count=amount(25, 50),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCollection = pytest.mark.timeout(3000)(Machine.TestCase)

"""The clients against a real service: the same scenarios for both, the same answers as in process."""

from __future__ import annotations

import inspect
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nestvec
from nestvec import Cut, Plan, Record, Stage
from nestvec.client import AsyncRemoteCollection, RemoteCollection
from nestvec.engine.reconfigure import Outdated, config_version

from .conftest import DIMS, Connect, Proxy, Service, filled, vectors


def assert_same_hits(remote: nestvec.Hits, local: nestvec.Hits) -> None:
    """All but the times, to the bit."""
    assert type(remote) is type(local)
    assert len(remote) == len(local) > 0
    for one, other in zip(remote, local, strict=True):
        assert (one.id, one.score, one.payload, one.text, one.document) == (
            other.id, other.score, other.payload, other.text, other.document
        )  # fmt: skip
        np.testing.assert_array_equal(one.vector, other.vector)
        assert getattr(one.vector, "dtype", None) == getattr(other.vector, "dtype", None)
    assert (remote.plan, remote.generation, remote.filter) == (local.plan, local.generation, local.filter)
    assert (remote.work.rows, remote.work.bytes) == (local.work.rows, local.work.bytes)


def assert_same_records(remote: list[Record], local: list[Record]) -> None:
    assert [(r.id, r.payload, r.text) for r in remote] == [(r.id, r.payload, r.text) for r in local]
    for one, other in zip(remote, local, strict=True):
        np.testing.assert_array_equal(one.vector, other.vector)


def test_collections_are_made_found_and_deleted(client: nestvec.Client, service: Service) -> None:
    docs = client.create_collection("docs", dims=DIMS, metric="l2", granularities=[4, DIMS])
    assert docs.name == "docs"
    local = service.database.collection("docs")
    assert local.config.metric == "l2"
    assert docs.info() == local.info()
    assert client.collections() == service.database.collections()
    client.create_collection("docs", dims=DIMS, metric="l2", granularities=[4, DIMS], exist_ok=True)
    with pytest.raises(nestvec.Conflict):
        client.create_collection("docs", dims=DIMS, metric="l2", granularities=[4, DIMS])
    with pytest.raises(nestvec.Conflict):
        client.create_collection("docs", dims=DIMS, exist_ok=True)
    client.delete_collection("docs")
    with pytest.raises(nestvec.NotFound, match="'docs'"):
        docs.count()
    with pytest.raises(nestvec.NotFound):
        client.delete_collection("docs")


def test_records_come_back_as_they_are_in_process(client: nestvec.Client, service: Service) -> None:
    local = service.database.create_collection("docs", dims=DIMS)
    docs, rows = client.collection("docs"), vectors(20)
    result = docs.upsert([Record(f"r{i}", rows[i], {"n": i, "deep": {"a": [1, None]}}, f"té {i}") for i in range(20)])
    assert (type(result), result.count) == (nestvec.UpsertResult, 20)
    assert docs.count() == local.count() == 20
    ids = ["r3", "nobody", "r1"]
    assert_same_records(docs.get(ids, with_vector=True), local.get(ids, with_vector=True))
    assert docs.get(["r3"])[0].vector is None
    assert docs.delete(["r3", "nobody"]) == 1
    assert [record.id for record in local.get(["r3", "r4"])] == ["r4"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "with_vector": True, "exact": True},
        {"k": 5, "with_payload": False},
        {"k": 2, "plan": Plan("exact")},
    ],
)
def test_a_search_answers_what_it_answers_in_process(
    client: nestvec.Client, service: Service, options: dict[str, Any]
) -> None:
    local, docs = filled(service.database), client.collection("docs")
    queries = vectors(3)
    assert_same_hits(docs.search(queries[0], **options), local.search(queries[0], **options))
    assert_same_hits(docs.search(queries[0].tolist(), **options), local.search(queries[0], **options))
    for remote, here in zip(docs.search_batch(queries, **options), local.search_batch(queries, **options), strict=True):
        assert_same_hits(remote, here)


def test_a_plan_travels_there_and_back(client: nestvec.Client, service: Service) -> None:
    local = service.database.create_collection("docs", dims=DIMS, granularities=(4, DIMS))
    rows = vectors(2500)
    local.build([nestvec.Batch(0, vectors=rows)])
    plan = Plan("soar", 4, (Stage(DIMS, 40, 0.5, "stored"),), probe_margin=0.3, shortlist=Cut(200, 0.4))
    docs = client.collection("docs")
    assert_same_hits(docs.search(rows[5], plan=plan), local.search(rows[5], plan=plan))
    assert docs.search(rows[5], plan=plan).plan.route == "soar"


def test_filters_choose_what_is_found_counted_scrolled_and_deleted(client: nestvec.Client, service: Service) -> None:
    local, docs, query = filled(service.database), client.collection("docs"), vectors(1)[0]
    few = {"field": "n", "range": {"lt": 5}}
    assert docs.count(filter=few) == local.count(filter=few) == 5
    assert docs.count(filter=nestvec.Filter(few)) == 5
    for wanted in (few, nestvec.Filter(few)):
        assert_same_hits(docs.search(query, filter=wanted), local.search(query, filter=wanted))
    assert docs.search(query, filter=few).filter == nestvec.FilterReport("exact", 5, 5 / 40)
    page = docs.scroll(filter=few, limit=3, with_vector=True)
    here = local.scroll(filter=few, limit=3, with_vector=True)
    assert (type(page), page.cursor) == (nestvec.Page, here.cursor)
    assert_same_records(page.records, here.records)
    assert [record.id for record in docs.scroll(filter=few, cursor=page.cursor)] == ["r3", "r4"]
    assert docs.delete(filter=few) == 5
    assert docs.delete(filter=few) == 0
    for wrong in ({"field": "n"}, {"field": "n", "eq": 1, "in": [1]}):
        with pytest.raises(nestvec.InvalidInput):
            docs.search(query, filter=wrong)
    with pytest.raises(nestvec.InvalidInput):
        docs.delete()
    with pytest.raises(nestvec.InvalidInput):
        docs.delete(["r9"], filter=few)
    assert local.count() == 35


def test_all_records_come_one_by_one(client: nestvec.Client, service: Service) -> None:
    local, docs = filled(service.database, 45), client.collection("docs")
    records = list(docs.records(page=20, with_vector=True))
    assert_same_records(records, local.get([f"r{i}" for i in range(45)], with_vector=True))
    assert len([call for call in service.seen if call.endswith("/scroll")]) == 3
    even = list(docs.records(filter={"field": "even", "eq": True}, with_payload=False))
    assert ([record.id for record in even], even[0].payload) == ([f"r{i}" for i in range(0, 45, 2)], None)
    with pytest.raises(nestvec.NotFound):
        list(client.collection("other").records())


def test_words_and_hybrid_orders_are_those_of_the_process(client: nestvec.Client, service: Service) -> None:
    local = service.database.create_collection("texts", encoder="static", bm25=True)
    docs = client.collection("texts")
    texts = ("Read members of a zip archive", "Send a mail by SMTP", "Compress a mail archive")
    docs.upsert([Record(f"t{i}", text=text) for i, text in enumerate(texts)])
    assert_same_hits(docs.search(text="mail", rank="bm25"), local.search(text="mail", rank="bm25"))
    vectors = np.random.default_rng(3).standard_normal((2, local.config.dims))
    for given in ({"texts": ["mail", "archive"]}, {"vectors": vectors, "texts": ["mail", "archive"]}):
        here = local.search_batch(**given, rank="hybrid")
        for remote, found in zip(docs.search_batch(**given, rank="hybrid"), here, strict=True):
            assert_same_hits(remote, found)
    with pytest.raises(nestvec.InvalidInput):
        docs.search_batch(vectors, texts=["mail"], rank="hybrid")
    mix = nestvec.Fusion("rrf", depth=50)
    assert_same_hits(
        docs.search(text="mail", rank="hybrid", fusion=mix), local.search(text="mail", rank="hybrid", fusion=mix)
    )


def test_chunked_documents_come_with_both_ids(client: nestvec.Client, service: Service) -> None:
    chunking = nestvec.Chunking(words=10, overlap=2)
    docs = client.create_collection("texts", encoder="static", chunking=chunking, fields={"year": "number"})
    local = service.database.collection("texts")
    assert (local.config.chunking, local.config.fields) == (chunking, {"year": "number"})
    assert docs.info() == local.info()
    docs.upsert([Record("long", text=" ".join(f"word{i}" for i in range(30)), payload={"year": 2000})])
    assert_same_hits(docs.search(text="word17"), local.search(text="word17"))
    assert docs.search(text="word17")[0].document == "long"
    with pytest.raises(nestvec.InvalidRecord):
        docs.upsert([Record("other", text="a text", payload={"year": "none"})])


def test_fields_are_declared_for_the_version_that_was_read(client: nestvec.Client, service: Service) -> None:
    local, docs = filled(service.database), client.collection("docs")
    version = config_version(docs.info().config)
    docs.declare({"n": "number"}, expected=version)
    assert docs.info().config.fields == local.config.fields == {"n": "number"}
    with pytest.raises(Outdated):
        docs.declare({"even": "bool"}, expected=version)
    docs.declare({"even": "bool"})
    with pytest.raises(nestvec.Conflict, match="number"):
        docs.declare({"n": "string"})


def test_texts_are_searched(client: nestvec.Client, service: Service) -> None:
    local = service.database.create_collection("texts", encoder="static")
    docs = client.collection("texts")
    docs.upsert([Record("zip", text="Read members of a zip archive"), Record("mail", text="Send a mail by SMTP")])
    assert_same_hits(docs.search(text="open a zip"), local.search(text="open a zip"))
    found = docs.search_batch(texts=["open a zip", "electronic mail"], k=1)
    assert [hits[0].id for hits in found] == ["zip", "mail"]
    assert docs.search_batch(texts=[]) == []


def test_many_records_are_written_in_batches_and_bounded_memory(client: nestvec.Client, service: Service) -> None:
    local = service.database.create_collection("docs", dims=DIMS)
    rows, taken, told = vectors(120), itertools.count(), []

    def records() -> Iterator[Record]:
        for i in range(120):
            next(taken)
            yield Record(f"r{i}", rows[i])

    def progress(step: str, done: int, total: int | None) -> None:
        ahead = int(repr(taken)[6:-1]) - done
        told.append((step, done, total, ahead <= 51))

    result = client.collection("docs").upsert_many(records(), batch=50, progress=progress)
    assert result.count == local.count() == 120
    assert told == [("upsert", 50, None, True), ("upsert", 100, None, True), ("upsert", 120, None, True)]
    assert client.collection("docs").upsert_many([]).count == 0


def test_large_records_are_sent_in_smaller_batches(client: nestvec.Client, service: Service) -> None:
    service.database.create_collection("docs", dims=DIMS)
    big = "x" * (1 << 20)
    client.collection("docs").upsert_many([Record(f"r{i}", vectors(1)[0], text=big) for i in range(10)], batch=50)
    assert service.seen.count("PUT /v1/collections/docs/records") == 2


def test_an_unusable_record_is_named_by_its_place_in_the_whole_input(client: nestvec.Client, service: Service) -> None:
    local = service.database.create_collection("docs", dims=DIMS)
    docs, rows = client.collection("docs"), vectors(120)
    records = [Record(f"r{i}", rows[i]) for i in range(120)]
    records[73] = Record("r73", rows[73][:5])
    with pytest.raises(nestvec.InvalidRecord) as caught:
        docs.upsert_many(records, batch=50)
    assert (caught.value.position, caught.value.id) == (73, "r73")
    assert str(DIMS) in str(caught.value)
    assert local.count() == 50
    with pytest.raises(nestvec.InvalidRecord) as caught:
        docs.upsert([Record("good", rows[0]), Record("bad\n", rows[1])])
    assert (caught.value.position, caught.value.id) == (1, "bad\n")


@pytest.mark.parametrize(
    ("error", "ask"),
    [
        (nestvec.InvalidInput, lambda docs: docs.search(vectors(1)[0], k=0)),
        (nestvec.InvalidInput, lambda docs: docs.search(vectors(1)[0][:3])),
        (nestvec.InvalidInput, lambda docs: docs.search()),
        (nestvec.InvalidInput, lambda docs: docs.search(vectors(2))),
        (nestvec.InvalidInput, lambda docs: docs.search("no vector")),
        (nestvec.InvalidInput, lambda docs: docs.search_batch(vectors(1)[0])),
        (nestvec.InvalidInput, lambda docs: docs.search([float("nan")] * DIMS)),
        (nestvec.InvalidInput, lambda docs: docs.search(text="no encoder")),
        (nestvec.InvalidInput, lambda docs: docs.get([""])),
        (nestvec.InvalidInput, lambda docs: docs.upsert([])),
        (nestvec.InvalidInput, lambda docs: docs.upsert_many([Record("a", vectors(1)[0])], batch=0)),
        (nestvec.InvalidInput, lambda docs: docs.upsert([Record("a", vectors(1)[0], {"x": object()})])),
    ],
)
def test_errors_are_the_classes_of_the_engine(
    client: nestvec.Client, service: Service, error: type[Exception], ask: Callable[[RemoteCollection], object]
) -> None:
    filled(service.database)
    with pytest.raises(error):
        ask(client.collection("docs"))


def test_a_wrong_key_and_a_wrong_address_are_clear(connect: Connect, service: Service) -> None:
    with pytest.raises(nestvec.ServiceError) as caught:
        connect(api_key="wrong").collections()
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")
    assert connect(api_key=None).healthy() is True
    for address in ("127.0.0.1:8765", "ftp://127.0.0.1", "", "http://"):
        with pytest.raises(nestvec.InvalidInput, match="http://"):
            connect(address)
    with pytest.raises(nestvec.InvalidInput):
        connect().collection("No Such Name!")
    for key in ("two\nlines", "schlüssel"):
        with pytest.raises(nestvec.InvalidInput, match="ASCII"):
            connect(api_key=key)


def test_aliases_are_switched_all_or_none(client: nestvec.Client, service: Service) -> None:
    filled(service.database)
    filled(service.database, 5, "new")
    switches = [nestvec.AliasSwitch("live", "docs"), nestvec.AliasSwitch("old", "new")]
    assert client.switch_aliases(switches) == client.aliases() == {"live": "docs", "old": "new"}
    assert client.collection("live").count() == 40
    with pytest.raises(nestvec.NotFound):
        client.switch_aliases([nestvec.AliasSwitch("live", "new"), nestvec.AliasSwitch("nobody", None)])
    assert client.switch_aliases([nestvec.AliasSwitch("old", None)]) == service.database.aliases() == {"live": "docs"}


def test_a_made_key_opens_what_it_is_for(client: nestvec.Client, connect: Connect, service: Service) -> None:
    filled(service.database)
    info, secret = client.create_key("reader", "read", ["docs"])
    assert client.keys() == service.database.keys() == [info]
    reader = connect(api_key=secret).collection("docs")
    assert reader.count() == 40
    with pytest.raises(nestvec.ServiceError) as caught:
        reader.delete(["r1"])
    assert caught.value.status == 403
    client.revoke_key("reader")
    with pytest.raises(nestvec.ServiceError) as caught:
        reader.count()
    assert caught.value.status == 401


def test_jobs_are_waited_for_and_told_about(client: nestvec.Client, service: Service) -> None:
    local, docs = filled(service.database), client.collection("docs")
    assert docs.seal() == nestvec.SealResult(40, local.info().segments, None)
    local.delete(["r1"])
    told: list[tuple[str, int, int | None]] = []
    assert docs.compact(progress=lambda *step: told.append(step)) == nestvec.CompactResult(1, 39, 1)
    newest, first = client.jobs(limit=10)[:2]
    assert (newest.kind, newest.state, first.kind) == ("compact", "done", "seal")
    assert client.job(newest.id) == client.wait(newest.id) == client.cancel_job(newest.id) == newest
    assert type(newest) is nestvec.Job
    with pytest.raises(nestvec.NotFound):
        client.job(10**6)
    with pytest.raises(nestvec.NotFound):
        client.collection("nobody").seal()


def test_a_job_whose_answer_is_lost_runs_once(connect: Connect, service: Service, proxy: Proxy) -> None:
    filled(service.database)
    before = len(service.database.jobs.list())
    proxy.plan[:] = ["lose"]
    assert connect(proxy.url).collection("docs").seal().rows == 40
    assert service.seen.count("POST /v1/collections/docs/jobs") == 2
    assert len(service.database.jobs.list()) == before + 1


def test_a_failed_job_tells_why(client: nestvec.Client, service: Service) -> None:
    filled(service.database)
    name = client.snapshot("docs").name
    with pytest.raises(nestvec.NestvecError, match=r"job \d+ \(restore\) failed: .*'docs'"):
        client.restore(name, "docs")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_goes_out_and_in_again(client: nestvec.Client, service: Service, tmp_path: Path, suffix: str) -> None:
    local, docs, file = filled(service.database), client.collection("docs"), tmp_path / f"out.{suffix}"
    before = local.get(["r7"], with_vector=True)
    report = docs.export(file, filter={"field": "even", "eq": False})
    assert report == nestvec.ExportReport(str(file), suffix, 20, file.stat().st_size)
    assert list(tmp_path.iterdir()) == [file]
    local.delete(["r7", "r8"])
    assert docs.import_file(file) == 20
    assert local.count() == 39
    after = local.get(["r7"], with_vector=True)
    np.testing.assert_allclose(after[0].vector, before[0].vector, rtol=1e-6)
    assert (after[0].payload, after[0].text) == (before[0].payload, before[0].text)


def test_an_export_that_fails_leaves_what_was_there(client: nestvec.Client, service: Service, tmp_path: Path) -> None:
    filled(service.database)
    file = tmp_path / "out.jsonl"
    file.write_text("mine")
    with pytest.raises(nestvec.InvalidInput):
        client.collection("docs").export(file, filter={"field": "n"})
    for wrong in (tmp_path / "out.csv", tmp_path, tmp_path / "no" / "out.jsonl"):
        with pytest.raises(nestvec.InvalidInput):
            client.collection("docs").export(wrong)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("mine", [file])
    with pytest.raises(nestvec.InvalidInput):
        client.collection("docs").import_file(tmp_path / "out.csv")


def test_snapshots_are_taken_fetched_kept_and_restored(
    client: nestvec.Client, service: Service, tmp_path: Path
) -> None:
    local, file = filled(service.database), tmp_path / "docs.nvs"
    taken = client.snapshot("docs")
    assert taken in client.snapshots()
    assert client.snapshots() == service.database.snapshots()
    client.download_snapshot(taken.name, file)
    assert file.read_bytes() == service.database.snapshot_file(taken.name).read_bytes()
    client.delete_snapshot(taken.name)
    with pytest.raises(nestvec.NotFound):
        client.download_snapshot(taken.name, file)
    kept = client.upload_snapshot(file)
    assert (kept.collection, kept.rows) == ("docs", 40)
    local.delete(["r1"])
    assert client.restore(kept.name, "again").count() == 40
    client.delete_snapshot(kept.name)
    file.write_bytes(b"no snapshot")
    with pytest.raises(nestvec.InvalidInput):
        client.upload_snapshot(file)


def test_it_says_what_answers(client: nestvec.Client, connect: Connect) -> None:
    assert client.info().name == "nestvec"
    assert "static" in client.info().encoders
    assert client.healthy() is True
    assert connect(unused_url()).healthy() is False


def unused_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("status", [429, 503])
def test_what_was_refused_is_asked_again(client: nestvec.Client, service: Service, status: int) -> None:
    local = filled(service.database)
    service.refusals[:] = [status, status]
    assert client.collection("docs").count() == local.count()
    assert len(service.seen) == 3


def test_there_are_no_more_attempts_than_allowed(connect: Connect, service: Service) -> None:
    filled(service.database)
    service.refusals[:] = [503] * 9
    with pytest.raises(nestvec.Busy):
        connect(retries=2).collection("docs").count()
    assert len(service.seen) == 3


def test_what_cannot_be_repeated_is_not_asked_again_after_a_503(client: nestvec.Client, service: Service) -> None:
    filled(service.database)
    service.refusals[:] = [503]
    with pytest.raises(nestvec.Busy):
        client.delete_collection("docs")
    assert service.database.collection("docs").count() == 40
    service.refusals[:] = [429]  # refused before anything was done
    client.delete_collection("docs")
    assert service.database.collections() == []


def test_a_lost_answer_is_asked_for_again_only_where_that_is_safe(
    connect: Connect, service: Service, proxy: Proxy
) -> None:
    local, client = filled(service.database), connect(proxy.url)
    proxy.plan[:] = ["lose", "refuse"]
    assert client.collection("docs").upsert([Record("new", vectors(1)[0])]).count == 1
    assert local.count() == 41
    assert service.seen.count("PUT /v1/collections/docs/records") == 2
    other = connect(proxy.url)
    proxy.plan[:] = ["lose"]
    with pytest.raises(nestvec.NoAnswer) as caught:
        other.delete_collection("docs")
    assert caught.value.sent
    assert service.seen.count("DELETE /v1/collections/docs") == 1


def test_a_refused_connection_is_tried_again_and_then_told(connect: Connect) -> None:
    start = time.monotonic()
    with pytest.raises(nestvec.NoAnswer) as caught:
        connect(unused_url(), retries=2).delete_collection("docs")
    assert not caught.value.sent
    assert time.monotonic() - start > 0.1


def test_time_is_up_once_for_all_attempts(client: nestvec.Client, service: Service) -> None:
    filled(service.database)
    service.refusals[:] = ["stall"]
    start = time.monotonic()
    with pytest.raises(nestvec.NoAnswer, match="time was up"):
        client.collection("docs").within(0.2).count()
    assert time.monotonic() - start < 0.8
    assert len(service.seen) == 1
    service.refusals[:] = [503] * 9
    with pytest.raises(nestvec.Busy):
        client.within(1.5).collection("docs").count()
    service.refusals.clear()
    assert client.collection("docs").within(None).count() == 40


# What the clients do not have: what needs the files, and what is theirs alone to decide.
NOT_REMOTE = {
    nestvec.Collection: {
        "build",
        "close",
        "deleted",
        "fresh",
        "import_batches",
        "install_tree",
        "part",
        "begin_upsert",  # the service answers when it is committed
        "reader",
        "verify",
        "warm",
        "watch",  # the service sees to it
        "watched",
    },
    nestvec.Database: {
        "acquire_service_lock",
        "add_snapshot",
        "damaged",  # /v1/info names them
        "jobs",
        "ledger",
        "opened",
        "snapshot_file",
        "verify",
    },
}
PAIRS = [
    (nestvec.Collection, RemoteCollection),
    (nestvec.Collection, AsyncRemoteCollection),
    (nestvec.Database, nestvec.Client),
    (nestvec.Database, nestvec.AsyncClient),
]


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_verbs_are_those_of_the_process_and_take_the_same(here: type, there: type) -> None:
    verbs = public(here) - NOT_REMOTE[here]
    assert verbs - public(there) == set(), "give the clients these verbs, or name them in NOT_REMOTE"
    for verb in verbs:
        assert takes(getattr(there, verb)) == takes(getattr(here, verb)), verb
        assert getattr(there, verb).__doc__, verb


def takes(verb: Callable[..., object]) -> list[tuple[object, ...]]:
    parameters = inspect.signature(verb).parameters.values()
    return [(each.name, each.kind, each.default) for each in parameters]


@pytest.mark.parametrize("there", [RemoteCollection, nestvec.Client])
def test_both_clients_have_the_same_verbs(there: type) -> None:
    twin = {RemoteCollection: AsyncRemoteCollection, nestvec.Client: nestvec.AsyncClient}[there]
    assert public(there) == public(twin)


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}

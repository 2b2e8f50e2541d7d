"""Change how a collection is made without a moment without answers: an alias, a second collection, one switch."""

import tempfile

import nestvec
from nestvec import AliasSwitch, Record

TEXTS = {
    "gzip": "Read and write GNU zip files.",
    "sched": "A general purpose event scheduler.",
    "json": "Encode and decode JSON documents.",
}

with tempfile.TemporaryDirectory() as folder, nestvec.open(folder) as database:
    first = database.create_collection("docs-1", encoder="static")
    first.upsert([Record(id, text=text) for id, text in TEXTS.items()])
    database.switch_aliases([AliasSwitch("docs", "docs-1")])  # users ask "docs", and never hear of docs-1

    backup = database.snapshot("docs-1")  # one file, taken while searches and writes go on
    print(f"snapshot of {backup.rows} records")

    second = database.create_collection("docs-2", encoder="static", dtype="float16", fields={"topic": "string"})
    page = first.scroll(limit=1000)
    second.upsert([Record(r.id, text=r.text, payload={"topic": "library"}) for r in page])
    database.switch_aliases([AliasSwitch("docs", "docs-2")])  # the next search is answered by docs-2
    print("docs is now", database.collection("docs").name)
    print([hit.id for hit in database.collection("docs").search(text="parse json", k=1)])

    database.delete_collection("docs-1")
    again = database.restore(backup.name, "docs-1")  # every byte is checked
    print("restored", again.count())
    database.switch_aliases([AliasSwitch("docs", "docs-1")])  # and back, should docs-2 disappoint
    print("docs is now", database.collection("docs").name)

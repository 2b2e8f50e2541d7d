"""Filters say which records a search, a count, a scroll or a delete is about."""

import tempfile

import nestvec
from nestvec import Record

BOOKS = [
    ("moby", "A captain hunts a white whale across the oceans.", {"year": 1851, "tags": ["sea", "classic"]}),
    ("island", "A boy, a map and pirates look for a buried treasure.", {"year": 1883, "tags": ["sea", "young"]}),
    ("sub", "A scientist travels the oceans in a submarine.", {"year": 1870, "tags": ["sea", "science"]}),
    ("mars", "An astronaut is left behind on another planet.", {"year": 2011, "tags": ["space", "science"]}),
    ("dune", "A desert planet, its worms and its prophet.", {"year": 1965, "tags": ["space", "classic"]}),
]

with tempfile.TemporaryDirectory() as folder, nestvec.open(folder) as database:
    # declaring a field is optional: it makes a write with another type an error
    books = database.create_collection("books", encoder="static", fields={"year": "number"})
    books.upsert([Record(id, text=text, payload=payload) for id, text, payload in BOOKS])

    old_and_wet = {
        "all": [
            {"field": "tags", "contains": "sea"},
            {"field": "year", "range": {"lt": 1880}},
        ]
    }
    answer = books.search(text="a ship under water", k=10, filter=old_and_wet)
    print([hit.id for hit in answer], answer.filter)

    page = books.scroll(limit=2)
    while True:
        print("page:", [record.id for record in page])
        if page.cursor is None:
            break
        page = books.scroll(limit=2, cursor=page.cursor)

    print("deleted:", books.delete(filter={"not": {"field": "tags", "contains": "sea"}}))
    print("left:", books.count())

"""Vectors find what is meant, words find what is written, and a hybrid search asks both."""

import tempfile

import nestvec
from nestvec import Fusion, Record

NOTES = {
    "e1042": "E1042: the user has no space left.",
    "e2077": "E2077: the network share cannot be reached.",
    "quota": "Every user may take 20 gigabytes. Ask the administrator to raise the limit.",
    "vpn": "Connect to the office from home.",
    "codes": "What error messages mean and how to report them.",
}
QUESTION = "meaning of E2077"

with tempfile.TemporaryDirectory() as folder, nestvec.open(folder) as database:
    notes = database.create_collection("notes", encoder="static")  # with an encoder, words are searchable as well
    notes.upsert([Record(id, text=text) for id, text in NOTES.items()])

    for rank in ("dense", "bm25", "hybrid"):
        print(f"{rank:8}", [hit.id for hit in notes.search(text=QUESTION, k=3, rank=rank)])

    # more weight for the vectors' side, as a stronger encoder earns; "rrf" looks at places instead of scores
    for fusion in (Fusion(weight=0.7), Fusion("rrf")):
        hits = notes.search(text=QUESTION, k=3, rank="hybrid", fusion=fusion)
        print(f"{fusion.kind:8}", [hit.id for hit in hits])

"""Search text in this process: the docstrings of the standard library, with the encoder that ships with nestvec."""

import importlib
import inspect
import tempfile

import nestvec
from nestvec import Record

MODULES = ("csv", "gzip", "heapq", "html", "json", "random", "shutil", "socket", "statistics", "tempfile", "zipfile")


def docstrings() -> dict[str, str]:
    """Full name -> docstring of every public function and class of some modules."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name, thing in inspect.getmembers(module, callable):
            text = inspect.getdoc(thing)
            if text and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = f"{name}: {text}"
    return found


with tempfile.TemporaryDirectory() as folder, nestvec.open(folder) as database:
    docs = database.create_collection("docs", encoder="static")
    docs.upsert([Record(name, text=text) for name, text in docstrings().items()])
    print(f"{docs.count()} docstrings")

    for question in ("unpack a zip archive", "the middle value of some numbers", "remove a whole directory"):
        answer = docs.search(text=question, k=3)
        print(f"\n{question}")
        for hit in answer:
            print(f"  {hit.score:.3f}  {hit.id}")

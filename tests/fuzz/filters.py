"""The filter parser: JSON in, a filter or InvalidInput out; a filter is read back as itself."""

from __future__ import annotations

import json

from target import fuzz, instrumented

with instrumented():
    import msgspec

    from nestvec.engine.filters.tree import Filter
    from nestvec.errors import InvalidInput

TREES: list[object] = [
    {"field": "lang", "eq": "en"},
    {"field": "a.b", "eq": None},
    {"field": "n", "in": [1, 2.5, "x", True]},
    {"field": "n", "range": {"gt": 1, "lte": 2**64 - 1}},
    {"field": "t", "range": {"gte": "2024-02-29T23:59:59Z", "lt": "2025-01-01"}},
    {"field": "n", "exists": False},
    {"field": "tags", "contains": "x"},
    {"field": "name", "prefix": "é"},
    {"all": [{"any": [{"not": {"field": "a", "eq": 1}}]}, {"field": "b", "eq": "2"}]},
    {"not": {"not": {"not": {"field": "a", "eq": -0.0}}}},
]


def seeds() -> list[bytes]:
    """One filter of every kind."""
    return [json.dumps(tree).encode() for tree in TREES]


def check(data: bytes) -> bool:
    """Read it as the service does, and as the library may be called; whether it is a filter."""
    good = False
    for load in (msgspec.json.decode, json.loads):
        try:
            tree = load(data)
        except (ValueError, RecursionError):  # no JSON: not the parser's business
            continue
        try:
            found = Filter(tree)
        except InvalidInput as error:
            str(error).encode("utf-8", "backslashreplace")
            continue
        assert Filter(json.loads(found.key)) == found
        assert len(found.fields) <= 64
        good = True
    return good


if __name__ == "__main__":
    fuzz(check, seeds())

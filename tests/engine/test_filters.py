"""Filters mean what a few lines of plain Python say, on any payloads; and what a refused one did wrong is named."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import apsw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestvec import Filter, InvalidInput
from nestvec.engine.filters.columns import SealedColumns
from nestvec.engine.filters.tree import MAX_CONDITIONS, MAX_DEPTH, MAX_IN
from nestvec.engine.storage.catalog import State

Json = Any  # any JSON value
STATE = State(1, 1, 0)
INSTANTS: dict[str, datetime] = {
    "2024-01-31": datetime(2024, 1, 31, tzinfo=UTC),
    "2024-01-31T12:00": datetime(2024, 1, 31, 12, tzinfo=UTC),
    "2024-01-31T12:00:00.5Z": datetime(2024, 1, 31, 12, 0, 0, 500000, UTC),
    "2024-01-31 14:00:00+02:00": datetime(2024, 1, 31, 12, tzinfo=UTC),
    "2024-02-01T00:00:00-0330": datetime(2024, 2, 1, tzinfo=timezone(-timedelta(hours=3, minutes=30))),
    "1969-12-31T23:59:59,999999z": datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
    "0001-01-01T00:00+14:00": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
}
TEXTS = [
    "",
    "a",
    "ab",
    "abc",
    "b",
    "ünï",
    "ü",
    "日本語",
    "日",
    "\U0001f600",
    "\uffff",
    "20240131",
    "2024-13-01",
    "2024",
]
EDGES = [0, 1, 2, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
KEYS = ["a", "b", "ü", 'q"t', "x y"]
FIELDS = [*KEYS, "a.b", "a.b.ü", "b.a", 'q"t.a']

texts = st.sampled_from([*TEXTS, *INSTANTS])
integers = st.sampled_from(EDGES).flatmap(lambda n: st.sampled_from([n, -n]))
floats = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0**53, 2.0**63, 1e300, -1e300, 1e30])
scalars = st.one_of(texts, integers, floats, st.booleans())
huge = st.sampled_from([2**64, 2**64 + 1, 10**30, 10**400, -(10**400)])
inner = st.one_of(scalars, st.none(), huge)
arrays = st.lists(st.one_of(inner, st.just([1]), st.just({"a": 1})), max_size=4)
objects = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), st.one_of(inner, arrays), max_size=3),
    lambda smaller: st.dictionaries(st.sampled_from(KEYS), st.one_of(inner, arrays, smaller), max_size=3),
    max_leaves=6,
)
ranges = st.one_of(
    st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), st.one_of(integers, floats), min_size=1),
    st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), st.sampled_from([*INSTANTS]), min_size=1),
)
operands: dict[str, st.SearchStrategy[Any]] = {
    "eq": st.one_of(scalars, st.none()),
    "in": st.lists(scalars, min_size=1, max_size=5),
    "range": ranges,
    "exists": st.booleans(),
    "contains": scalars,
    "prefix": st.sampled_from(TEXTS),
}
conditions = st.sampled_from(sorted(operands)).flatmap(
    lambda op: st.fixed_dictionaries({"field": st.sampled_from(FIELDS), op: operands[op]})
)
trees = st.recursive(
    conditions,
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(part, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
        part.map(lambda one: {"not": one}),
    ),
    max_leaves=5,
)


def holds(tree: dict[str, Any], payload: object) -> bool:
    """The meaning of a filter."""
    if "all" in tree:
        return all(holds(part, payload) for part in tree["all"])
    if "any" in tree:
        return any(holds(part, payload) for part in tree["any"])
    if "not" in tree:
        return not holds(tree["not"], payload)
    value = payload
    for key in tree["field"].split("."):
        value = value.get(key) if isinstance(value, dict) else None
    (op,) = set(tree) - {"field"}
    return meets(value, op, tree[op])


def meets(value: Json, op: str, operand: Json) -> bool:
    if op == "exists":
        return (value is not None) == operand
    if op == "eq" and operand is None:
        return value is None
    items = value if isinstance(value, list) else [value]
    if op == "contains":
        if isinstance(value, str):
            return isinstance(operand, str) and operand in value
        return isinstance(value, list) and any(same(item, operand) for item in items)
    if op == "prefix":
        return any(isinstance(item, str) and item.startswith(operand) for item in items)
    if op == "range":
        return any(within(item, operand) for item in items)
    return any(same(item, one) for item in items for one in (operand if op == "in" else [operand]))


def kind(value: object) -> str | None:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, (int, float)) else "string" if isinstance(value, str) else None


def number(value: float) -> float:
    """Integers count exactly up to 64 bits, and as the nearest float64 beyond."""
    if isinstance(value, float) or abs(value) < 2**64:
        return value
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def same(value: Json, operand: Json) -> bool:
    if kind(value) != kind(operand) or kind(value) is None:
        return False
    return number(value) == operand if kind(value) == "number" else bool(value == operand)


def within(value: Json, bounds: dict[str, Any]) -> bool:
    times = any(isinstance(bound, str) for bound in bounds.values())
    if times:
        if value not in INSTANTS if isinstance(value, str) else True:
            return False
        value, bounds = INSTANTS[value], {name: INSTANTS[bound] for name, bound in bounds.items()}
    elif kind(value) != "number":
        return False
    else:
        value = number(value)
    compare = {
        "gt": lambda bound: value > bound,
        "gte": lambda bound: value >= bound,
        "lt": lambda bound: value < bound,
        "lte": lambda bound: value <= bound,
    }
    return all(compare[name](bound) for name, bound in bounds.items())


def catalog_of(payloads: list[object], gap: int = 1) -> tuple[apsw.Connection, np.ndarray]:
    """A real table of records, with records of other segments between them."""
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE TABLE record(seq INTEGER PRIMARY KEY, payload BLOB)")
    seqs = np.arange(len(payloads), dtype=np.int64) * gap + 5
    stored = [json.dumps(payload, ensure_ascii=False).encode() for payload in payloads]
    connection.executemany("INSERT INTO record VALUES (?, ?)", list(zip(seqs.tolist(), stored, strict=True)))
    if gap > 1:
        others = [(seq + 1, b'{"a":1,"b":"a"}') for seq in seqs.tolist()]
        connection.executemany("INSERT INTO record VALUES (?, ?)", others)
    return connection, seqs


@settings(max_examples=400, deadline=None)
@given(
    payloads=st.lists(st.one_of(objects, st.none()), min_size=1, max_size=12),
    tree=trees,
    gap=st.sampled_from([1, 2, 1000]),
)
def test_a_mask_is_what_plain_python_says(payloads: list[object], tree: dict[str, Any], gap: int) -> None:
    connection, seqs = catalog_of(payloads, gap)
    mask = SealedColumns(seqs).mask(connection, STATE, Filter(tree))
    assert mask.tolist() == [holds(tree, payload) for payload in payloads]


SCALARS: list[Json] = [*TEXTS, *INSTANTS, *EDGES, *(-n for n in EDGES), 0.5, -0.5, 2.0**53, 2.0**63, 1e300, True, False]
BOUNDS: list[Json] = [n for n in SCALARS if kind(n) == "number"]
EVERY: dict[str, list[Json]] = {
    "eq": [*SCALARS, None],
    "in": [[one] for one in SCALARS] + [SCALARS[i : i + 3] for i in range(len(SCALARS))] + [[1, 2], BOUNDS],
    "range": [{name: bound} for name in ("gt", "gte", "lt", "lte") for bound in (*BOUNDS, *INSTANTS)]
    + [{"gt": -1, "lte": 2**53}, {"gte": 0.5, "lt": 2}, {"gte": "2024-01-31", "lt": "2024-02-01T00:00:00-0330"}],
    "exists": [True, False],
    "contains": SCALARS,
    "prefix": [*TEXTS, *INSTANTS],
}


@pytest.mark.parametrize("op", [*EVERY])
@pytest.mark.parametrize("only", [None, "string", "number", "bool"])
def test_every_operand_meets_every_value_as_plain_python_says(op: str, only: str | None) -> None:
    """Values of one kind, or of all kinds in one column, alone and in arrays."""
    alone = [value for value in SCALARS if only in (None, kind(value))]
    pairs = [[value, alone[i - 1]] for i, value in enumerate(alone)]
    others: list[Json] = [] if only else [None, {}, {"a": 1}, [], [None], [[1]], 2**64, 10**400, ["a", 1, True, None]]
    values = [*alone, *pairs, *others]
    connection, seqs = catalog_of([{"a": value} for value in values])
    columns = SealedColumns(seqs)
    for operand in EVERY[op]:
        mask = columns.mask(connection, STATE, Filter({"field": "a", op: operand})).tolist()
        expected = [meets(value, op, operand) for value in values]
        assert mask == expected, (operand, [v for v, m, e in zip(values, mask, expected, strict=True) if m != e])


def test_columns_of_more_rows_than_a_batch_and_more_strings_than_a_byte() -> None:
    payloads: list[object] = [
        {"n": i, "s": f"s{i % 700}", "t": [f"t{i % 3}", i % 5], "m": i if i % 2 else str(i), "o": {"b": i % 7 == 0}}
        for i in range(10000)
    ]
    connection, seqs = catalog_of(payloads)
    columns = SealedColumns(seqs)
    trees: list[dict[str, Any]] = [
        {"field": "s", "eq": "s699"},
        {"field": "s", "in": ["s1", "s698", "none", 3]},
        {"field": "s", "prefix": "s6"},
        {"field": "s", "contains": "9"},
        {"field": "t", "in": ["t1", 4]},
        {"field": "t", "contains": 4},
        {"field": "m", "in": [1, 3, "4", "6", 9001, True]},
        {"field": "m", "range": {"gt": 9990}},
        {"all": [{"field": "o.b", "eq": True}, {"field": "n", "range": {"gte": 5000, "lt": 6000}}]},
    ]
    for tree in trees:
        assert columns.mask(connection, STATE, Filter(tree)).tolist() == [holds(tree, each) for each in payloads]
    assert columns.nbytes < 100 * len(payloads)


def nested(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"field": "a", "eq": 1}
    for _ in range(depth - 1):
        tree = {"not": tree}
    return tree


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ([], "filter: "),
        ({}, "filter: "),
        ({"field": "a"}, "filter: "),
        ({"eq": 1}, "filter: "),
        ({"field": "a", "eq": 1, "range": {"gt": 1}}, "filter: "),
        ({"field": "a", "eq": 1, "extra": 2}, "filter: "),
        ({"all": [{"field": "a", "eq": 1}], "any": []}, "filter: "),
        ({"all": []}, "filter/all: "),
        ({"any": {"field": "a", "eq": 1}}, "filter/any: "),
        ({"all": [{"field": "a", "eq": 1}, {"not": 3}]}, "filter/all/1/not: "),
        ({"field": "", "eq": 1}, "filter/field: "),
        ({"field": "a..b", "eq": 1}, "filter/field: "),
        ({"field": "a" * 257, "eq": 1}, "filter/field: "),
        ({"field": 3, "eq": 1}, "filter/field: "),
        ({"field": "a", "eq": [1]}, "filter/eq: "),
        ({"field": "a", "eq": float("nan")}, "filter/eq: "),
        ({"field": "a", "eq": 1 << 64}, "filter/eq: "),
        ({"field": "a", "eq": 10**5000}, "filter/eq: "),
        ({"field": "a", "eq": "\ud800"}, "filter/eq: "),
        ({"field": "a", "in": []}, "filter/in: "),
        ({"field": "a", "in": [1] * (MAX_IN + 1)}, "filter/in: "),
        ({"field": "a", "in": [1, None]}, "filter/in/1: "),
        ({"field": "a", "range": {}}, "filter/range: "),
        ({"field": "a", "range": {"above": 1}}, "filter/range: "),
        ({"field": "a", "range": {"gt": "tomorrow"}}, "filter/range/gt: "),
        ({"field": "a", "range": {"gt": True}}, "filter/range/gt: "),
        ({"field": "a", "range": {"gt": 1, "lt": "2024-01-01"}}, "filter/range/lt: "),
        ({"field": "a", "exists": 1}, "filter/exists: "),
        ({"field": "a", "contains": None}, "filter/contains: "),
        ({"field": "a", "prefix": 1}, "filter/prefix: "),
        (nested(MAX_DEPTH + 1), "filter" + "/not" * MAX_DEPTH + ": "),
        ({"any": [{"field": "a", "eq": 1}] * (MAX_CONDITIONS + 1)}, f"filter/any/{MAX_CONDITIONS}: "),
    ],
)
def test_a_refused_filter_is_told_where_and_why(tree: Json, place: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Filter(tree)
    assert str(caught.value).startswith(place)
    assert len(str(caught.value)) < 400


def test_filters_at_their_limits_are_taken() -> None:
    Filter(nested(MAX_DEPTH))
    Filter({"any": [{"field": "a", "in": [1] * MAX_IN}] * MAX_CONDITIONS})
    Filter({"field": "a", "eq": (1 << 64) - 1})


@given(tree=trees)
def test_a_filter_survives_json_and_equal_trees_are_equal(tree: dict[str, Any]) -> None:
    filter = Filter(tree)
    again = Filter(json.loads(json.dumps(filter.to_json())))
    assert (again, hash(again), again.to_json()) == (filter, hash(filter), filter.to_json())


def test_equal_numbers_of_other_kinds_are_other_filters() -> None:
    assert len({Filter({"field": "a", "eq": value}) for value in (1, True, "1")}) == 3

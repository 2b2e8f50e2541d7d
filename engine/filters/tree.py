"""A filter as it is written: a JSON tree, checked once and turned into conditions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from nestvec.engine.filters.declared import MAX_FIELD_CHARACTERS, is_field
from nestvec.engine.filters.shown import shown
from nestvec.engine.filters.times import NO_TIME, micros
from nestvec.engine.schema import encode_text
from nestvec.errors import InvalidInput

MAX_CONDITIONS = 64
MAX_DEPTH = 8
MAX_IN = 1000
MAX_INT = (1 << 64) - 1

Scalar = str | int | float | bool
GroupOp = Literal["all", "any", "not"]
ConditionOp = Literal["eq", "in", "range", "exists", "contains", "prefix"]

_GROUPS: tuple[GroupOp, ...] = ("all", "any", "not")
_CONDITIONS: tuple[ConditionOp, ...] = ("eq", "in", "range", "exists", "contains", "prefix")
_BOUNDS = ("gt", "gte", "lt", "lte")
_SHAPE = 'a filter is {"all": [..]}, {"any": [..]}, {"not": {..}} or {"field": name, one of ' + ", ".join(_CONDITIONS)


@dataclass(frozen=True)
class Range:
    """The bounds of a range as given, and as compared: numbers, or microseconds where `times`."""

    given: tuple[tuple[str, str | int | float], ...]
    bounds: tuple[tuple[str, int | float], ...]
    times: bool


Operand = Scalar | None | tuple[Scalar, ...] | Range


@dataclass(frozen=True)
class Condition:
    """One test of one field; `operand` is what its `op` takes."""

    field: str
    op: ConditionOp
    operand: Operand

    def to_json(self) -> dict[str, Any]:
        operand: Any = self.operand
        if isinstance(operand, Range):
            operand = dict(operand.given)
        return {"field": self.field, self.op: list(operand) if isinstance(operand, tuple) else operand}


@dataclass(frozen=True)
class Group:
    """Conditions and groups of which all, any, or (exactly one part) none hold."""

    op: GroupOp
    parts: tuple[Node, ...]

    def to_json(self) -> dict[str, Any]:
        parts = [part.to_json() for part in self.parts]
        return {self.op: parts[0] if self.op == "not" else parts}


Node = Condition | Group


class Filter:
    """Which records a search, count, scroll or delete is about.

    `tree` is a JSON tree: {"all": [..]}, {"any": [..]}, {"not": {..}}, or one condition {"field": "a.b", op: value}:

    * "eq": a string, number or bool; null matches where the field is absent or null
    * "in": a list of 1 to 1000 strings, numbers or bools
    * "range": {"gt" | "gte" | "lt" | "lte": bound}, bounds all numbers, or all ISO 8601 datetimes (no zone: UTC)
    * "exists": true (there, and not null) or false
    * "contains": a string that holds the given one, or an array that has the element
    * "prefix": a string that begins so

    A dot in a field walks into objects. Where a field holds an array, any element may satisfy eq, in, range or prefix.
    Booleans are no numbers; integers compare exactly up to 64 bits. Raises InvalidInput that names the place. Equal
    trees are equal filters and hash alike.
    """

    __slots__ = ("fields", "key", "root")

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.root: Node = _Parser().node(tree, "filter", 1)
        self.key: str = json.dumps(self.root.to_json(), separators=(",", ":"))
        self.fields: frozenset[str] = frozenset(_fields(self.root))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `Filter` reads it back."""
        return self.root.to_json()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Filter({self.to_json()!r})"


FilterLike = Mapping[str, Any] | Filter


def as_filter(filter: FilterLike) -> Filter:
    """The filter that was given as a tree, or as itself."""
    return filter if isinstance(filter, Filter) else Filter(filter)


def _fields(node: Node) -> list[str]:
    if isinstance(node, Condition):
        return [node.field]
    return [field for part in node.parts for field in _fields(part)]


class _Parser:
    """Turns a tree into nodes, counting its conditions."""

    def __init__(self) -> None:
        self._conditions = 0

    def node(self, tree: object, place: str, depth: int) -> Node:
        if not isinstance(tree, Mapping):
            raise InvalidInput(f"{place}: {_SHAPE}}}; got {shown(tree)}")
        if depth > MAX_DEPTH:
            raise InvalidInput(f"{place}: a filter nests at most {MAX_DEPTH} deep")
        for op in _GROUPS:
            if op in tree:
                _check_alone(tree, {op}, place)
                return Group(op, self._parts(op, tree[op], f"{place}/{op}", depth + 1))
        return self._condition(tree, place)

    def _parts(self, op: GroupOp, parts: object, place: str, depth: int) -> tuple[Node, ...]:
        if op == "not":
            return (self.node(parts, place, depth),)
        if not isinstance(parts, (list, tuple)) or not parts:
            raise InvalidInput(f"{place}: expected a list of at least one filter, got {shown(parts)}")
        return tuple(self.node(part, f"{place}/{i}", depth) for i, part in enumerate(parts))

    def _condition(self, tree: Mapping[Any, Any], place: str) -> Condition:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidInput(f"{place}: a filter has at most {MAX_CONDITIONS} conditions")
        ops = [op for op in _CONDITIONS if op in tree]
        if "field" not in tree or len(ops) != 1:
            raise InvalidInput(f"{place}: {_SHAPE}}}; got {shown(tree)}")
        _check_alone(tree, {"field", ops[0]}, place)
        operand = _OPERANDS[ops[0]](tree[ops[0]], f"{place}/{ops[0]}")
        return Condition(_field(tree["field"], f"{place}/field"), ops[0], operand)


def _check_alone(tree: Mapping[Any, Any], names: set[str], place: str) -> None:
    extra = sorted(str(name) for name in set(tree) - names)
    if extra:
        raise InvalidInput(f"{place}: {', '.join(sorted(names))} stand alone; got {len(extra)} more")


def _field(value: object, place: str) -> str:
    if not is_field(value):
        raise InvalidInput(
            f"{place}: expected a name such as 'year' or 'author.name' of at most {MAX_FIELD_CHARACTERS} characters, "
            f"got {shown(value)}"
        )
    return _string(value, place)


def _string(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{place}: expected a string, got {shown(value)}")
    try:
        encode_text(value, "string")
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}") from None
    return value


def _scalar(value: object, place: str) -> Scalar:
    if isinstance(value, str):
        return _string(value, place)
    if isinstance(value, int) and abs(value) <= MAX_INT:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise InvalidInput(
        f"{place}: expected a string, a bool, or a finite number, integers of 64 bits; got {shown(value)}"
    )


def _eq(value: object, place: str) -> Scalar | None:
    return None if value is None else _scalar(value, place)


def _in(value: object, place: str) -> tuple[Scalar, ...]:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_IN:
        got = f"{len(value)} values" if isinstance(value, (list, tuple)) else shown(value)
        raise InvalidInput(f"{place}: expected a list of 1 to {MAX_IN} values, got {got}")
    return tuple(_scalar(item, f"{place}/{i}") for i, item in enumerate(cast(Sequence[object], value)))


def _range(value: object, place: str) -> Range:
    if not isinstance(value, Mapping) or not value or set(value) - set(_BOUNDS):
        raise InvalidInput(f"{place}: expected an object of {', '.join(_BOUNDS)}, got {shown(value)}")
    given = tuple((name, _scalar(value[name], f"{place}/{name}")) for name in _BOUNDS if name in value)
    times = all(isinstance(bound, str) for _, bound in given)
    bounds = tuple((name, _bound(bound, times, f"{place}/{name}")) for name, bound in given)
    return Range(given, bounds, times)


def _bound(value: Scalar, times: bool, place: str) -> int | float:
    if isinstance(value, str):
        found = micros(value) if times else NO_TIME
        if found != NO_TIME:
            return found
    elif not isinstance(value, bool):
        return value
    raise InvalidInput(f"{place}: the bounds of a range are numbers, or ISO 8601 datetimes; got {shown(value)}")


def _exists(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{place}: expected true or false, got {shown(value)}")
    return value


_OPERANDS: dict[ConditionOp, Callable[[object, str], Operand]] = {
    "eq": _eq,
    "in": _in,
    "range": _range,
    "exists": _exists,
    "contains": _scalar,
    "prefix": _string,
}

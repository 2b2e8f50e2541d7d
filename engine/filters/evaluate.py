"""Conditions on columns: trees become masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.filters.times import NO_TIME
from nestvec.engine.filters.tree import Condition, Node, Range, Scalar
from nestvec.engine.filters.values import Column, Mask, Values, split


def evaluate(node: Node, columns: Mapping[str, Column], rows: int) -> Mask:
    """bool [rows]: where the tree holds. `columns` has every field of the tree; the mask is the caller's own."""
    if isinstance(node, Condition):
        return _condition(node, columns[node.field])
    mask = evaluate(node.parts[0], columns, rows)
    if node.op == "not":
        return np.logical_not(mask, out=mask)
    combine = np.logical_and if node.op == "all" else np.logical_or
    for part in node.parts[1:]:
        combine(mask, evaluate(part, columns, rows), out=mask)
    return mask


def _condition(condition: Condition, column: Column) -> Mask:
    op, operand = condition.op, condition.operand
    if op == "exists":
        return _present(column, bool(operand))
    if operand is None:
        return _present(column, False)
    in_scalars, in_elements = _TESTS[op]
    mask = in_scalars(column.scalars, operand)
    if mask is None:
        mask = np.zeros(column.rows, np.bool_)
    if column.elements is not None:
        inside = in_elements(column.elements, operand)
        if inside is not None:
            mask[column.owners[inside]] = True
    return mask


def _present(column: Column, wanted: bool) -> Mask:
    if column.present is None:
        return np.full(column.rows, wanted)
    return column.present.copy() if wanted else ~column.present


def _equal(values: Values, operand: Scalar) -> Mask | None:
    if isinstance(operand, str):
        if values.codes is None:
            return None
        code = values.strings.code(operand)
        return _same(values.codes, code) if code > 0 else None
    if isinstance(operand, bool):
        return None if values.bools is None else _same(values.bools, int(operand))
    if values.numbers is None:
        return None
    number, rest = split(operand)
    mask = _same(values.numbers, number)
    if values.rest is not None:
        np.logical_and(mask, values.rest == rest, out=mask)
        return mask
    return mask if rest == 0 else None


def _same(values: NDArray[Any], wanted: float) -> Mask:
    return cast(Mask, values == wanted)


def _among(values: Values, operand: tuple[Scalar, ...]) -> Mask | None:
    """Strings by one table of codes; numbers, all at once, where no integer needs more than a float64."""
    numbers = [split(item) for item in operand if not isinstance(item, (str, bool))]
    mask: Mask | None = None
    together = values.rest is None and len(numbers) > 1
    if together and values.numbers is not None:
        mask = np.isin(values.numbers, np.array([number for number, rest in numbers if rest == 0], np.float64))
    codes = [values.strings.code(item) for item in operand if isinstance(item, str)]
    if values.codes is not None and max(codes, default=-1) > 0:
        table = np.zeros(len(values.strings) + 1, np.bool_)
        table[[code for code in codes if code > 0]] = True
        mask = _either(mask, table[values.codes])
    single = [item for item in operand if isinstance(item, bool) or not (together or isinstance(item, str))]
    for item in single:
        mask = _either(mask, _equal(values, item))
    return mask


def _either(one: Mask | None, other: Mask | None) -> Mask | None:
    if one is None or other is None:
        return one if other is None else other
    return np.logical_or(one, other, out=one)


def _within(values: Values, operand: Range) -> Mask | None:
    if operand.times:
        if values.codes is None:
            return None
        times = values.strings.times
        table = _bounded(times, None, operand)
        return cast(Mask, np.logical_and(table, times != NO_TIME, out=table)[values.codes])
    return None if values.numbers is None else _bounded(values.numbers, values.rest, operand)


_COMPARE: dict[str, Callable[..., Mask]] = {
    "gt": np.greater,
    "gte": np.greater_equal,
    "lt": np.less,
    "lte": np.less_equal,
}


def _bounded(numbers: NDArray[Any], rests: NDArray[np.int16] | None, operand: Range) -> Mask:
    """Where all bounds hold; NaN meets none."""
    masks = [_beyond(numbers, rests, name, bound, operand.times) for name, bound in operand.bounds]
    for mask in masks[1:]:
        np.logical_and(masks[0], mask, out=masks[0])
    return masks[0]


def _beyond(numbers: NDArray[Any], rests: NDArray[np.int16] | None, name: str, bound: float, times: bool) -> Mask:
    number, rest = (bound, 0) if times else split(bound)
    if rests is None and rest == 0:
        return _COMPARE[name](numbers, number)
    ties = _COMPARE[name](np.int16(0) if rests is None else rests, rest)
    return cast(Mask, _COMPARE[name[:2]](numbers, number) | ((numbers == number) & ties))


def _begins(values: Values, operand: str) -> Mask | None:
    if values.codes is None:
        return None
    first, end = values.strings.prefixed(operand)
    return np.logical_and(values.codes >= first, values.codes < end) if first < end else None


def _holds(values: Values, operand: Scalar) -> Mask | None:
    if not isinstance(operand, str) or values.codes is None:
        return None
    held: Mask = values.strings.holding(operand)[values.codes]
    return held


_Test = Callable[[Values, Any], Mask | None]
_TESTS: dict[str, tuple[_Test, _Test]] = {
    "eq": (_equal, _equal),
    "in": (_among, _among),
    "range": (_within, _within),
    "prefix": (_begins, _begins),
    "contains": (_holds, _equal),
}
"""By op: the test of a row's own scalar, and of an element of its array (None: none passes)."""

"""Dense columns of JSON values: what conditions are tested on.

A field of n rows becomes a `Column`: its scalars by row, and the scalars inside its arrays by owner.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.filters.times import NO_TIME, micros

Mask = NDArray[np.bool_]

_EXACT_FLOAT = 2.0**53
_EXACT_INT = 1 << 64
_END = b"\xff"  # no byte of UTF-8: between the strings of a dictionary, and above all that begin alike


class Dictionary:
    """Distinct strings in the order of their code points, as UTF-8 in one piece. Code i + 1 is string i; 0 is none."""

    def __init__(self, strings: Sequence[str]) -> None:
        """`strings` ascend."""
        encoded = [string.encode() for string in strings]
        self._blob = _END.join(encoded) + _END
        self._starts = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(each) + 1 for each in encoded], out=self._starts[1:])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> bytes:
        """String i as UTF-8."""
        return self._blob[self._starts[i] : self._starts[i + 1] - 1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return len(self._blob) + self._starts.nbytes

    def code(self, string: str) -> int:
        """The string's code, -1 where it is not here."""
        wanted = string.encode()
        i = bisect_left(self, wanted)
        return i + 1 if i < len(self) and self[i] == wanted else -1

    def prefixed(self, prefix: str) -> tuple[int, int]:
        """The codes from .. below .. of the strings that begin so: they lie together."""
        return bisect_left(self, prefix.encode()) + 1, bisect_left(self, prefix.encode() + _END) + 1

    def holding(self, part: str) -> Mask:
        """bool [1 + len]: by code, whether the string holds `part`."""
        found = np.zeros(len(self) + 1, np.bool_)
        if part:
            at = [match.start() for match in re.finditer(re.escape(part.encode()), self._blob)]
            found[np.searchsorted(self._starts, at, "right")] = True
        else:
            found[1:] = True
        return found

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """i64 [1 + len]: by code, microseconds since 1970 UTC; NO_TIME where the string is no datetime."""
        every = (micros(self[i].decode()) for i in range(len(self)))
        return np.concatenate(([NO_TIME], np.fromiter(every, np.int64, len(self))))


@dataclass(frozen=True, eq=False)
class Values:
    """n scalars by kind; a kind that none has is None.

    codes: of strings, u8 | u16 | i32 [n], 0: none. numbers: f64 [n], NaN: none. rest: i16 [n], what an integer that
    no float64 is has beyond its number (None: there is no such integer). bools: i8 [n], -1: none.
    """

    codes: NDArray[Any] | None
    strings: Dictionary
    numbers: NDArray[np.float64] | None
    rest: NDArray[np.int16] | None
    bools: NDArray[np.int8] | None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        held = (self.codes, self.numbers, self.rest, self.bools)
        return self.strings.nbytes + sum(each.nbytes for each in held if each is not None)


@dataclass(frozen=True, eq=False)
class Column:
    """One field of n rows. `present` is bool [n]: there and not null (None: in all rows).

    `elements` are the scalars inside arrays, in the order of rows; element j is in row `owners[j]`, i32.
    """

    rows: int
    present: Mask | None
    scalars: Values
    elements: Values | None
    owners: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        present = 0 if self.present is None else self.present.nbytes
        return present + self.scalars.nbytes + (self.elements.nbytes if self.elements else 0) + self.owners.nbytes


class ColumnBuilder:
    """Makes a column of values that come in the order of rows, some thousands at a time."""

    def __init__(self) -> None:
        self._rows = 0
        self._present: list[Mask] = []
        self._scalars, self._elements = _ValuesBuilder(), _ValuesBuilder()
        self._owners: list[NDArray[np.int32]] = []

    def add(self, values: list[Any]) -> None:
        """The next rows: any JSON values, None where there is none."""
        kinds = set(map(type, values))
        self._present.append(np.array([value is not None for value in values], np.bool_))
        if list in kinds:
            lists = [(i, value) for i, value in enumerate(values) if type(value) is list]
            counts = [len(value) for _, value in lists]
            self._elements.add([item for _, value in lists for item in value])
            self._owners.append(np.repeat(np.array([self._rows + i for i, _ in lists], np.int32), counts))
        self._scalars.add(values)
        self._rows += len(values)

    def finish(self) -> Column:
        """The column of all rows."""
        present = np.concatenate(self._present) if self._present else np.empty(0, np.bool_)
        return Column(
            self._rows,
            None if present.all() else present,
            self._scalars.finish(),
            self._elements.finish() if self._owners else None,
            np.concatenate(self._owners) if self._owners else np.empty(0, np.int32),
        )


class _Codes(dict[str | None, int]):
    """Strings by the order of their first appearance, from 1; None is 0."""

    def __missing__(self, string: str | None) -> int:
        code = self[string] = len(self)
        return code


class _ValuesBuilder:
    """Makes `Values`: chunks by kind, each with the row that it begins at."""

    def __init__(self) -> None:
        self._rows = 0
        self._index = _Codes({None: 0})
        self._codes: list[tuple[int, NDArray[np.int32]]] = []
        self._numbers: list[tuple[int, NDArray[np.float64]]] = []
        self._rest: list[tuple[int, NDArray[np.int16]]] = []
        self._bools: list[tuple[int, NDArray[np.int8]]] = []

    def add(self, values: list[Any]) -> None:
        """The next rows; what is neither string, number nor bool is nothing."""
        kinds = set(map(type, values))
        if str in kinds:
            texts = values if kinds == {str} else [value if type(value) is str else None for value in values]
            codes = np.fromiter(map(self._index.__getitem__, texts), np.int32, len(texts))
            self._codes.append((self._rows, codes))
        if int in kinds or float in kinds:
            self._add_numbers(values, pure=kinds <= {int, float})
        if bool in kinds:
            flags = [-1 if type(value) is not bool else int(value) for value in values]
            self._bools.append((self._rows, np.array(flags, np.int8)))
        self._rows += len(values)

    def _add_numbers(self, values: list[Any], pure: bool) -> None:
        numeric = values if pure else [v if type(v) is int or type(v) is float else np.nan for v in values]
        try:
            numbers = np.array(numeric, np.float64)
        except OverflowError:
            numbers = np.array([as_float(value) for value in numeric], np.float64)
        self._numbers.append((self._rows, numbers))
        large = np.flatnonzero(np.abs(numbers) >= _EXACT_FLOAT)
        rest = np.zeros(len(values), np.int16)
        rest[large] = [split(numeric[i])[1] for i in large.tolist()]
        if rest.any():
            self._rest.append((self._rows, rest))

    def finish(self) -> Values:
        """The values of all rows."""
        codes, strings = self._coded()
        return Values(
            codes,
            strings,
            _joined(self._numbers, self._rows, np.float64, np.nan),
            _joined(self._rest, self._rows, np.int16, 0),
            _joined(self._bools, self._rows, np.int8, -1),
        )

    def _coded(self) -> tuple[NDArray[Any] | None, Dictionary]:
        """Codes in the order of the strings, in the smallest type that holds them."""
        strings = [string for string in self._index if string is not None]
        provisional = _joined(self._codes, self._rows, np.int32, 0)
        if provisional is None:
            return None, Dictionary([])
        order = sorted(range(len(strings)), key=strings.__getitem__)
        kind = np.uint8 if len(strings) < 1 << 8 else np.uint16 if len(strings) < 1 << 16 else np.int32
        ranks = np.zeros(len(strings) + 1, kind)
        ranks[np.array(order) + 1] = np.arange(1, len(strings) + 1)
        return ranks[provisional], Dictionary([strings[i] for i in order])


def _joined(chunks: list[tuple[int, NDArray[Any]]], rows: int, kind: type, filler: float) -> NDArray[Any] | None:
    if not chunks:
        return None
    joined: NDArray[Any] = np.full(rows, filler, kind)
    for start, chunk in chunks:
        joined[start : start + len(chunk)] = chunk
    return joined


def as_float(value: float) -> float:
    """The nearest float64; infinite for an integer beyond all of them."""
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def split(value: float) -> tuple[float, int]:
    """(nearest float64, what is left of an integer of up to 64 bits): pairs compare as the numbers do."""
    number = as_float(value)
    exact = isinstance(value, int) and abs(value) < _EXACT_INT
    return number, int(value) - int(number) if exact else 0

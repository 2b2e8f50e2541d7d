"""Declared fields: a collection may say which type a payload's field has, and every write is held to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from nestvec.engine.filters.shown import shown
from nestvec.engine.filters.times import NO_TIME, micros
from nestvec.errors import InvalidInput

FieldType = Literal["string", "number", "bool", "datetime"]
Fields = Mapping[str, FieldType]

MAX_FIELDS = 64
MAX_FIELD_CHARACTERS = 256

_IS: dict[FieldType, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "datetime": lambda value: isinstance(value, str) and micros(value) != NO_TIME,
}


def is_field(name: object) -> bool:
    """Whether this can name a field: keys joined by dots, none of them empty."""
    return isinstance(name, str) and len(name) <= MAX_FIELD_CHARACTERS and all(name.split("."))


def check_fields(fields: object) -> dict[str, FieldType]:
    """The declaration of some fields, or InvalidInput."""
    if not isinstance(fields, Mapping) or len(fields) > MAX_FIELDS:
        raise InvalidInput(f"fields is an object of at most {MAX_FIELDS} names and types, got {fields!r:.100}")
    for name, kind in fields.items():
        if not is_field(name):
            raise InvalidInput(f"a field is named like 'year' or 'author.name', got {name!r:.100}")
        if kind not in get_args(FieldType):
            raise InvalidInput(
                f"the type of field {name!r} is one of {', '.join(get_args(FieldType))}; got {kind!r:.100}"
            )
    return dict(fields)


def check_types(payload: Mapping[str, Any] | None, fields: Fields) -> None:
    """Raise InvalidInput where a field has another type than declared; absent and null are fine, and so are arrays."""
    for name, kind in fields.items():
        value = inside(payload, name.split("."))
        items = value if isinstance(value, list) else [] if value is None else [value]
        wrong = next((item for item in items if not _IS[kind](item)), None)
        if wrong is not None or None in items:
            came = "an array with a null" if wrong is None else shown(wrong)
            raise InvalidInput(f"field {name!r} is declared {kind} (or an array of them); got {came}")


def inside(value: object, path: list[str]) -> object:
    """What lies at the end of a path of keys, None where there is nothing."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value

"""What may change in a configuration after its collection was made: fields may be declared."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2b

import apsw

from nestvec.engine.filters.declared import Fields, check_fields, check_types
from nestvec.engine.record import payload_of
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.storage.catalog import Catalog, change_facts, meta_value, rows_of
from nestvec.errors import Conflict, InvalidInput

_ROWS = 1000


class Outdated(Conflict):
    """The configuration is not the one any more that the change was meant for."""


def config_version(config: CollectionConfig) -> str:
    """16 characters that are others for every other configuration."""
    return blake2b(json.dumps(config.to_json(), sort_keys=True).encode(), digest_size=8).hexdigest()


def declare_fields(held: Catalog, fields: Fields, expected: str | None) -> None:
    """Add declarations to a collection's configuration; writes are held to them from this commit on, by all processes.

    `expected`: the version that the change is meant for. Raises Outdated if it has another one, Conflict where a field
    is declared as something else already, or a record does not fit, InvalidInput.
    """
    checked = check_fields(fields)
    # Most of the reading is done before writers have to wait for it.
    with held.read() as connection:
        _changeable(connection, checked, expected)
        seen = _check_records(connection, checked, 0)
    with held.write() as connection:
        config = _changeable(connection, checked, expected)
        _check_records(connection, checked, seen)
        new = replace(config, fields={**config.fields, **checked})
        change_facts(connection, config=json.dumps(new.to_json()))


def _changeable(connection: apsw.Connection, fields: Fields, expected: str | None) -> CollectionConfig:
    """The stored configuration, which is of the expected version and says nothing else about the fields."""
    config = CollectionConfig.from_json(json.loads(meta_value(connection, "config")))
    found = config_version(config)
    if expected is not None and found != expected:
        raise Outdated(f"the configuration has version {found} by now, not {expected:.40}: read it again")
    other = [name for name, kind in fields.items() if config.fields.get(name, kind) != kind]
    if other:
        raise Conflict(f"field {other[0]!r} is declared {config.fields[other[0]]} already, which cannot be changed")
    return config


def _check_records(connection: apsw.Connection, fields: Fields, after: int) -> int:
    """Hold the records written after sequence number `after` to declarations; the last sequence number seen."""
    while True:
        query = f"SELECT seq, id, payload FROM record WHERE seq>? ORDER BY seq LIMIT {_ROWS}"  # nosec B608 - a constant
        rows = rows_of(connection, query, (after,))
        for after, id, payload in rows:  # noqa: B007 - the last one is what the next query goes on from
            try:
                check_types(payload_of(payload), fields)
            except InvalidInput as error:
                raise Conflict(f"record {id!r}: {error}; change it, or the declaration") from None
        if len(rows) < _ROWS:
            return after

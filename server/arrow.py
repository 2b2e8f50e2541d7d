"""Records to write as an Arrow stream: columns id, vector, text and payload become those of an `UpsertBody`.

Reading takes no more memory than a few times the body: compressed buffers and dictionaries, which can grow without
bound, are refused, and every batch is validated in full before its numbers are touched.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from nestvec.errors import MissingDependency
from nestvec.server.errors import RequestProblem, invalid
from nestvec.server.wire import UpsertBody

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("id", "vector", "text", "payload")
_COMPRESSION = 3  # the field of a RecordBatch message that is there when its buffers are compressed


def decode_stream(body: bytes, limit: int) -> UpsertBody:
    """The stream's columns, at most `limit` rows. 400 where it is no Arrow stream, 422 where its columns are others.

    Raises MissingDependency without pyarrow.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingDependency("an Arrow stream", "parquet") from None
    try:
        table = pa.Table.from_batches(*_read(body, limit))
        return _columns(table.combine_chunks())
    except (pa.ArrowException, OSError, EOFError, struct.error, UnicodeDecodeError) as error:
        raise RequestProblem(400, "malformed_arrow", f"the body is no Arrow stream: {error}") from None


def _read(body: bytes, limit: int) -> tuple[list[pa.RecordBatch], pa.Schema]:
    import pyarrow as pa

    messages = _messages(pa.ipc.MessageReader.open_stream(pa.py_buffer(body)))
    first = next(messages, None)
    if first is None or first.type != "schema":
        raise RequestProblem(400, "malformed_arrow", "the body is no Arrow stream: it does not begin with a schema")
    schema = pa.ipc.read_schema(first)
    _check_schema(schema)
    batches, rows = [], 0
    for message in messages:
        if message.type != "record batch" or _compressed(message.metadata.to_pybytes()):
            raise invalid("expected record batches without compression and without dictionaries")
        batch = pa.ipc.read_record_batch(message, schema)
        rows += batch.num_rows
        if rows > limit:
            raise invalid(f"expected at most {limit} rows, got {rows} or more", "/ids")
        batch.validate(full=True)
        batches.append(batch)
    if not rows:
        raise invalid("expected at least one row, got none", "/ids")
    return batches, schema


def _messages(reader: Any) -> Iterator[Any]:  # noqa: ANN401 - pyarrow has no types
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _compressed(metadata: bytes) -> bool:
    """Whether the RecordBatch of this message (a flatbuffer) names a compression."""
    message = struct.unpack_from("<I", metadata)[0]
    header = message + _field(metadata, message, 2)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, batch, _COMPRESSION) != 0


def _field(metadata: bytes, table: int, number: int) -> int:
    """The offset of a flatbuffer table's field from its table, 0 where it is absent."""
    fields = table - int(struct.unpack_from("<i", metadata, table)[0])
    size: int = struct.unpack_from("<H", metadata, fields)[0]
    place = 4 + 2 * number
    return int(struct.unpack_from("<H", metadata, fields + place)[0]) if place < size else 0


def _check_schema(schema: pa.Schema) -> None:
    from pyarrow import types

    names = schema.names
    unknown = [name for name in names if name not in _COLUMNS]
    if unknown or "id" not in names or len(set(names)) != len(names):
        raise invalid(f"expected the columns {', '.join(_COLUMNS)}, of them id at least; got {', '.join(names):.200}")
    for field in schema:
        kind = field.type
        text = types.is_string(kind) or types.is_large_string(kind)
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        fits = {
            "id": text,
            "text": text,
            "payload": text or types.is_struct(kind),
            "vector": lists and types.is_floating(kind.value_type),
        }
        if not fits[field.name]:
            wanted = {"vector": "a list of floats", "payload": "JSON strings or structs"}.get(field.name, "strings")
            raise invalid(f"expected {wanted} in column {field.name}, got {kind}", f"/{field.name}s")


def _columns(table: pa.Table) -> UpsertBody:
    columns = {name: table.column(name) for name in table.column_names}
    ids = columns["id"].to_pylist()
    if None in ids:
        raise invalid("expected an id in every row, got null", f"/ids/{ids.index(None)}")
    return UpsertBody(
        ids=ids,
        vectors=_vectors(columns["vector"]) if "vector" in columns else None,
        texts=columns["text"].to_pylist() if "text" in columns else None,
        payloads=_payloads(columns["payload"].to_pylist()) if "payload" in columns else None,
    )


def _vectors(column: pa.ChunkedArray) -> list[Any] | bytes:
    """All numbers packed where every row has one vector of one length, else each row's own."""
    from pyarrow import types

    array = column.combine_chunks()
    if types.is_fixed_size_list(array.type) and not array.null_count:
        return _packed(array.flatten())
    return [None if row is None else np.asarray(row, np.float64).astype("<f4").tobytes() for row in _lists(array)]


def _lists(array: Any) -> Iterator[Any]:  # noqa: ANN401 - pyarrow has no types
    for row in array:
        yield row.values if row.is_valid else None


def _packed(numbers: Any) -> bytes:  # noqa: ANN401 - pyarrow has no types
    if numbers.null_count:
        raise invalid("expected numbers in every vector, got null", "/vectors")
    with np.errstate(over="ignore"):
        return bytes(numbers.to_numpy(zero_copy_only=False).astype("<f4", copy=False).tobytes())


def _payloads(column: list[Any]) -> list[dict[str, Any] | None]:
    return [_payload(value, position) for position, value in enumerate(column)]


def _payload(value: Any, position: int) -> dict[str, Any] | None:  # noqa: ANN401 - a struct or a string
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    try:
        return msgspec.json.decode(value, type=dict[str, Any] | None)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise invalid(f"expected a JSON object: {error}", f"/payloads/{position}") from None

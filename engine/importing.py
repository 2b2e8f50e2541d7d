"""Import: the rows of a source, upserted batch by batch into a collection that goes on living meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from nestvec.engine.intake import Batch
from nestvec.engine.progress import Progress
from nestvec.engine.record import Record, UpsertResult
from nestvec.errors import InvalidInput, InvalidRecord

Upsert = Callable[[Sequence[Record]], UpsertResult]

_WRITE_ROWS = 1000


def import_batches(upsert: Upsert, batches: Iterable[Batch], progress: Progress) -> int:
    """See `Collection.import_batches`."""
    done = 0
    for batch in batches:
        records = list(_records(batch))
        for start in range(0, len(records), _WRITE_ROWS):
            block = records[start : start + _WRITE_ROWS]
            try:
                upsert(block)
            except InvalidRecord as error:
                raise InvalidRecord(batch.start + start + error.position, error.id, error.reason) from None
            done += len(block)
            progress("import", done, None)
    return done


def _records(batch: Batch) -> Iterator[Record]:
    """The rows of a batch as records; InvalidRecord for the first that could not be read."""
    if batch.bad:
        offset = min(batch.bad)
        raise InvalidRecord(batch.start + offset, batch.ids[offset] if batch.ids else None, batch.bad[offset])
    columns = [column for column in (batch.ids, batch.vectors, batch.texts, batch.payloads) if column is not None]
    rows = len(columns[0]) if columns else 0
    if any(len(column) != rows for column in columns):
        raise InvalidInput(f"the batch from row {batch.start} has columns of different lengths")
    for i in range(rows):
        yield Record(
            batch.ids[i] if batch.ids is not None else str(batch.start + i),
            None if batch.vectors is None else batch.vectors[i],
            batch.payloads[i] if batch.payloads is not None else None,
            batch.texts[i] if batch.texts is not None else None,
        )

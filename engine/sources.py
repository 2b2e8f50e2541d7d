"""Files of vectors or texts, read in batches: .npy .npz .fvecs .bvecs .parquet .jsonl .jsonl.gz.

Nothing is ever held but one batch of rows. A file whose structure is broken raises InvalidInput naming the file, and
the line where there is one; a single unusable row is marked in its batch's `bad`, for the build to reject.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nestvec.engine.intake import Batch
from nestvec.engine.readers import Columns, Reader, open_reader
from nestvec.errors import InvalidInput


class Source:
    """The rows of one or more files, numbered on from file to file. May be iterated more than once."""

    def __init__(self, readers: Sequence[tuple[Path, Reader]], batch_rows: int) -> None:
        """`readers` hold at least one file and agree in dims and fields; open_source sees to that."""
        self._readers, self._batch_rows = readers, batch_rows
        self.dims: int | None = readers[0][1].dims
        """Length of the vectors; None for texts."""
        counts = [reader.rows for _, reader in readers]
        known = [count for count in counts if count is not None]
        self.rows: int | None = sum(known) if len(known) == len(counts) else None
        """Number of rows; None if only reading to the end would tell."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches of at most `batch_rows` rows, in file order."""
        start = 0
        for _, reader in self._readers:
            for chunk in reader.chunks(self._batch_rows):
                yield Batch(
                    start=start,
                    ids=chunk.ids,
                    vectors=chunk.vectors,
                    texts=chunk.texts,
                    payloads=chunk.payloads,
                    bad=chunk.bad,
                )
                start += chunk.size


def open_source(
    paths: Sequence[Path],
    *,
    id_column: str | None = None,
    vector_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    payload_columns: Sequence[str] | None = None,
    batch_rows: int = 4096,
) -> Source:
    """Open files for reading; every file's header is checked now.

    Columns not named are guessed: `id`; `vector` or `embedding`; `title` and `text` together, or `text`; `payload`,
    which must hold objects. Several text columns are joined by ": ". `payload_columns` gathers columns into one object.
    In .npz files `vector_column` names the member. Without an id column rows are known by their number.

    Raises InvalidInput for missing or unknown files, missing columns (listing those found), or files that disagree;
    MissingDependency for .parquet without pyarrow.
    """
    if not paths:
        raise InvalidInput("expected at least one file to read, got none")
    if batch_rows < 1:
        raise InvalidInput(f"batch_rows must be >= 1, got {batch_rows}")
    texts = (text_column,) if isinstance(text_column, str) else text_column
    columns = Columns(
        id=id_column,
        vector=vector_column,
        texts=None if texts is None else tuple(texts),
        payload=None if payload_columns is None else tuple(payload_columns),
    )
    readers = [(path, open_reader(path, columns)) for path in map(Path, paths)]
    first_path, first = readers[0]
    for path, reader in readers[1:]:
        if (reader.dims, reader.fields) != (first.dims, first.fields):
            raise InvalidInput(
                f"{path} has {_describe(reader)}, but {first_path} has {_describe(first)}; build them one by one"
            )
    return Source(readers, batch_rows)


def _describe(reader: Reader) -> str:
    dims = f" of {reader.dims} dims" if reader.dims is not None else ""
    return f"{', '.join(sorted(reader.fields))}{dims}"

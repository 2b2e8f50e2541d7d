"""Build: stream batches of any size into one segment, in bounded memory, published by one transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.coordinates import F32, as_matrix, bad_rows, rotate, to_stored, to_unit
from nestvec.engine.maintenance import (
    Coded,
    Part,
    Published,
    Trained,
    code_segments,
    list_publication,
    maintenance,
    publish_generation,
    publish_segment,
    silent,
)
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot
from nestvec.engine.storage import catalog, files
from nestvec.engine.storage.segment import finish_segment, open_segment
from nestvec.engine.training import (
    MIN_TRAINING_ROWS,
    ROTATION_SAMPLE_ROWS,
    Progress,
    decide_rotation,
    sample_rows,
    train_model,
)
from nestvec.engine.writer import Encode, Row, check_row
from nestvec.errors import InvalidInput, InvalidRecord, NestvecError

ROTATE = ("auto", "pca", "none")
_BLOCK_ROWS = 8192


@dataclass(eq=False)
class Batch:
    """Consecutive rows of an input. `start` is the 0-based number of the first; `vectors` is f32 [n, dims].

    Without `ids` a row's number is its id. Without `vectors` the texts are encoded by the collection's encoder.
    `bad` maps the offsets of rows that could not be read to the reasons; their vectors or texts are not looked at.
    """

    start: int
    ids: list[str] | None = None
    vectors: NDArray[np.float32] | None = None
    texts: list[str] | None = None
    payloads: list[dict[str, Any]] | None = None
    bad: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildReport:
    """What a build did. `prefix_recall`: share of the true 10 nearest among the 100 nearest by a short prefix of the
    vectors as they are stored (None: not measured). `seconds` by stage."""

    rows: int
    rejected: int
    rotated: bool
    prefix_recall: float | None
    generation: int | None
    seconds: dict[str, float] = field(default_factory=dict)


def build(
    part: Part,
    batches: Iterable[Batch],
    *,
    rotate: str,
    rejects: Path | None,
    progress: Progress | None,
    partitions: int | None,
    soar: bool,
    encode: Encode,
) -> BuildReport:
    """See `Collection.build`."""
    if rotate not in ROTATE:
        raise InvalidInput(f"rotate must be one of {', '.join(ROTATE)}; got {rotate!r}")
    if rotate == "pca" and not soar:
        raise InvalidInput("rotate='pca' needs soar=True: the rotation belongs to a trained generation")
    with maintenance(part, "build"):
        with part.keeper.current() as (_, snapshot):
            pass
        fixed = snapshot.generation is not None or bool(snapshot.segments)
        if rotate == "pca" and fixed and snapshot.rotation is None:
            raise InvalidInput("rotate='pca': this collection already holds unrotated segments; build into a new one")
        run = _Build(part, snapshot, "none" if fixed else rotate, soar, partitions, progress or silent)
        with files.staging(part.layout.root, "build") as directory:
            return run.run(directory, batches, rejects, encode)


class _Build:
    """One build: read, rotate, train, assign, publish."""

    def __init__(
        self, part: Part, snapshot: Snapshot, rotate: str, soar: bool, partitions: int | None, progress: Progress
    ) -> None:
        self.part, self.snapshot, self.rotate, self.soar = part, snapshot, rotate, soar
        self.partitions, self.progress = partitions, progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 3)

    def run(self, directory: Path, batches: Iterable[Batch], rejects: Path | None, encode: Encode) -> BuildReport:
        intake = _Intake(self.part, directory, self.snapshot, self.rotate != "none", rejects, encode)
        try:
            with self._timed("read"):
                for batch in batches:
                    intake.add(batch)
                    self.progress("read", intake.rows, None)
            entries = intake.finish()
        finally:
            intake.close()
        files.crash_point("build-read")
        current = self.snapshot.generation.number if self.snapshot.generation else None
        if not intake.rows:
            return BuildReport(0, intake.rejected, False, None, current, self.seconds)
        with self._timed("rotate"):
            rotation, recall, entries = self._settle_rotation(directory, intake.rows, entries)
        segment = self._publish_segment(directory, intake.rows, entries)
        generation = self._publish(directory, segment, intake.rows, rotation)
        return BuildReport(intake.rows, intake.rejected, rotation is not None, recall, generation, self.seconds)

    def _trains(self, rows: int) -> bool:
        return self.snapshot.generation is None and self.soar and rows >= MIN_TRAINING_ROWS

    def _settle_rotation(
        self, directory: Path, rows: int, entries: list[files.FileEntry]
    ) -> tuple[F32 | None, float | None, list[files.FileEntry]]:
        """(rotation, prefix recall, files): staged vectors become stored ones where the rotation was still open."""
        config, path = self.part.config, directory / "segment" / "vectors.bin"
        if self.rotate == "none":
            sample = sample_rows(files.map_array(path, config.dtype, (rows, config.dims)), ROTATION_SAMPLE_ROWS)
            recall = decide_rotation(sample, config, "none")[1] if self.soar else None
            return self.snapshot.rotation, recall, entries
        staged = files.map_array(path, "float32", (rows, config.dims))
        rotation, recall = None, None
        if self._trains(rows):
            rotation, recall = decide_rotation(sample_rows(staged, ROTATION_SAMPLE_ROWS), config, self.rotate)
        if rotation is None and config.dtype == "float32":
            return None, recall, entries
        return rotation, recall, [self._rewrite(directory, staged, rotation), *entries[1:]]

    def _rewrite(self, directory: Path, staged: F32, rotation: F32 | None) -> files.FileEntry:
        """Replace the staged float32 vectors by rotated ones in the collection's dtype."""
        path = directory / "segment" / "vectors.bin"
        files.move(path, directory / "staged.bin")
        writer = files.FileWriter(path)
        try:
            for start in range(0, len(staged), _BLOCK_ROWS):
                block = np.array(staged[start : start + _BLOCK_ROWS])
                writer.append(np.asarray(rotate(block, rotation), self.part.config.dtype))
                self.progress("rotate", min(start + _BLOCK_ROWS, len(staged)), len(staged))
            entry = writer.finish()
        finally:
            writer.close()
        files.remove_file(directory / "staged.bin")
        files.crash_point("build-rotated")
        return entry

    def _publish_segment(self, directory: Path, rows: int, entries: list[files.FileEntry]) -> Published:
        with self.part.catalog.write() as connection:
            first = catalog.reserve_seqs(connection, rows)
        seqs = np.arange(first, first + rows, dtype=np.int64)
        crc = finish_segment(directory / "segment", self.part.config, seqs, entries)
        return publish_segment(self.part, directory / "segment", crc)

    def _publish(self, directory: Path, segment: Published, rows: int, rotation: F32 | None) -> int | None:
        part, snapshot = self.part, self.snapshot
        path = part.layout.segment(segment.number)
        opened = open_segment(path, segment.number, segment.manifest_crc, part.config)
        model, trained = snapshot.model, None
        if self._trains(rows):
            with self._timed("train"):
                self.progress("train", 0, None)
                total = rows + sum(view.segment.rows for view in snapshot.segments)
                model = train_model(opened.vectors, part.config, total, self.partitions)
                trained = publish_generation(part, model, rotation)
        number = trained.number if trained else snapshot.generation.number if snapshot.generation else None
        coded: Coded = (None, [])
        if model is not None and number is not None:
            with self._timed("assign"):
                older = [view.segment for view in snapshot.segments] if trained else []
                coded = code_segments(part, number, model, [*older, opened], self.progress)
        with self._timed("publish"):
            self.progress("publish", 0, rows)
            first = int(opened.seqs[0])
            self._commit(directory, (segment, rows, first), (trained, model), coded)
            self.progress("publish", rows, rows)
        files.crash_point("build-committed")
        return number

    def _commit(
        self,
        directory: Path,
        segment: tuple[Published, int, int],
        generation: Trained,
        coded: Coded,
    ) -> None:
        """The swap: records, segment, generation and posting lists appear together or not at all."""
        published, rows, first = segment
        with self.part.catalog.attached(directory / _Intake.FILE, "staged"), self.part.catalog.write() as connection:
            clash = connection.execute(
                "SELECT s.source, s.id FROM staged.row s JOIN record r ON r.id=s.id ORDER BY s.row LIMIT 1"
            ).get
            if clash is not None:
                raise InvalidRecord(clash[0], clash[1], "the collection got a record of this id during the build")
            connection.execute(
                "INSERT INTO record(seq, id, payload, text, crc) "
                "SELECT ?+row, id, payload, text, crc FROM staged.row ORDER BY row",
                (first,),
            )
            list_publication(connection, published, rows, generation, coded)
            files.crash_point("build-before-commit")


class _Intake:
    """Checks rows and appends them to the staging files: vectors (and norms) raw, the rest in a SQLite file."""

    FILE = "rows.sqlite"

    def __init__(
        self, part: Part, directory: Path, snapshot: Snapshot, undecided: bool, rejects: Path | None, encode: Encode
    ) -> None:
        self._part, self._snapshot, self._undecided, self._encode = part, snapshot, undecided, encode
        self.rows, self.rejected = 0, 0
        files.new_directory(directory / "segment")
        self._vectors = files.FileWriter(directory / "segment" / "vectors.bin")
        cosine = part.config.metric == "cosine"
        self._norms = files.FileWriter(directory / "segment" / "norms.bin") if cosine else None
        self._database = apsw.Connection(str(directory / self.FILE))
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "PRAGMA cache_size=-65536",
            "CREATE TABLE row(row INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, payload BLOB NOT NULL, "
            "text TEXT, crc INTEGER NOT NULL, source INTEGER NOT NULL)",
            "BEGIN",
        ):
            self._database.execute(statement)
        self._rejects: TextIO | None = rejects.open("w", encoding="utf-8") if rejects else None

    def add(self, batch: Batch) -> None:
        vectors, bad = self._vectors_of(batch)
        ids = batch.ids if batch.ids is not None else [str(batch.start + i) for i in range(len(vectors))]
        for name, column in (("ids", ids), ("texts", batch.texts), ("payloads", batch.payloads)):
            if column is not None and len(column) != len(vectors):
                raise InvalidInput(
                    f"the batch from row {batch.start} has {len(vectors)} vectors and {len(column)} "
                    f"{name}; they must be as many"
                )
        good, rows = self._checked(batch, ids, bad)
        if len(good) < len(vectors):
            vectors = vectors[good]
        if len(good):
            self._append(vectors, rows, [batch.start + i for i in good])

    def _vectors_of(self, batch: Batch) -> tuple[F32, dict[int, str]]:
        """(vectors, offset -> why that row cannot be used)."""
        config: CollectionConfig = self._part.config
        try:
            if batch.vectors is not None:
                vectors = as_matrix(batch.vectors, config.dims)
                return vectors, bad_rows(vectors, config) | batch.bad
            if batch.texts is None or config.encoder is None:
                raise InvalidInput("the rows have no vectors, and no text that an encoder of the collection could read")
            return self._encoded(batch.texts, batch.bad)
        except InvalidInput as error:
            raise InvalidInput(f"rows from {batch.start}: {error}") from None

    def _encoded(self, texts: list[str], unread: dict[int, str]) -> tuple[F32, dict[int, str]]:
        """Vectors of the usable texts, NaN for the others: one bad text must not stop its whole batch."""
        empty = {i: "the text is empty" for i, text in enumerate(texts) if not text.strip()}
        usable = [i for i in range(len(texts)) if i not in empty and i not in unread]
        vectors = np.full((len(texts), self._part.config.dims), np.nan, np.float32)
        if usable:
            vectors[usable] = as_matrix(self._encode([texts[i] for i in usable]), self._part.config.dims)
        return vectors, bad_rows(vectors, self._part.config) | empty | unread

    def _checked(self, batch: Batch, ids: list[str], bad: dict[int, str]) -> tuple[list[int], list[Row]]:
        """(positions, columns) of the good rows; the bad ones are rejected, or the first of them is raised."""
        good, rows, seen = [], [], set[str]()
        with self._part.catalog.read() as connection:
            known = connection if self._snapshot.rows else None
            for i, id in enumerate(ids):
                try:
                    row = check_row(
                        batch.start + i,
                        id,
                        batch.payloads[i] if batch.payloads else None,
                        batch.texts[i] if batch.texts else None,
                    )
                    reason = bad.get(i) or self._duplicate(row.id, seen, known)
                    if reason:
                        raise InvalidRecord(batch.start + i, row.id, reason)
                except InvalidRecord as error:
                    self._reject(error)
                    continue
                seen.add(row.id)
                good.append(i)
                rows.append(row)
        return good, rows

    def _duplicate(self, id: str, seen: set[str], known: apsw.Connection | None) -> str | None:
        if id in seen:
            return "the same id came earlier in this build"
        if self.rows:
            earlier = self._database.execute("SELECT source FROM row WHERE id=?", (id,)).get
            if earlier is not None:
                return f"the same id came earlier in this build, at row {earlier}"
        if known is not None and known.execute("SELECT 1 FROM record WHERE id=?", (id,)).get is not None:
            return "the collection already holds a record of this id"
        return None

    def _reject(self, error: InvalidRecord) -> None:
        if self._rejects is None:
            raise error
        self.rejected += 1
        line = {"row": error.position, "id": error.id, "reason": error.reason}
        self._rejects.write(json.dumps(line) + "\n")

    def _append(self, vectors: F32, rows: list[Row], sources: list[int]) -> None:
        config = self._part.config
        if self._undecided:
            stored, norms = to_unit(vectors, config)
        else:
            stored, norms = to_stored(vectors, config, self._snapshot.rotation)
        self._vectors.append(stored)
        if self._norms is not None and norms is not None:
            self._norms.append(norms)
        try:
            self._database.executemany(
                "INSERT INTO row VALUES (?, ?, ?, ?, ?, ?)",
                ((self.rows + i, *row, source) for i, (row, source) in enumerate(zip(rows, sources, strict=True))),
            )
        except (apsw.FullError, apsw.IOError) as error:
            raise NestvecError(f"build: cannot write the staging files ({error}); nothing was changed") from error
        self.rows += len(rows)

    def finish(self) -> list[files.FileEntry]:
        """Everything is in the staging files; the entries of vectors.bin and norms.bin."""
        self._database.execute("COMMIT")
        if self._rejects is not None:
            self._rejects.flush()
        return [self._vectors.finish(), *([self._norms.finish()] if self._norms else [])]

    def close(self) -> None:
        """Close every file, after success or failure."""
        self._vectors.close()
        if self._norms is not None:
            self._norms.close()
        self._database.close(True)
        if self._rejects is not None:
            self._rejects.close()

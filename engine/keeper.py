"""Keeps the newest snapshot of a collection: what every read begins with."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from nestvec.engine.calibration.points import Calibration
from nestvec.engine.calibration.store import read_calibration
from nestvec.engine.coordinates import F32, PLAIN, Turn, to_stored
from nestvec.engine.filters.columns import GrowingColumns, SealedColumns
from nestvec.engine.progress import silent
from nestvec.engine.routes import FirstStage, Model
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Delta, Live, SealedSegments, SegmentView, Snapshot, kill
from nestvec.engine.storage import catalog, files
from nestvec.engine.storage.catalog import Catalog, State
from nestvec.engine.storage.generation import (
    Generation,
    code_vectors,
    open_generation,
    open_postings,
    resident_room,
    write_postings,
)
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.segment import Segment, open_segment
from nestvec.errors import Damaged

log = logging.getLogger("nestvec")

_BLOCK_ROWS = 4096
_RETRIES = 20
_FEW = 64  # new rows or deletes


class _DeltaBuffer:
    """Append-only arrays with room to grow; older snapshots keep seeing their own shorter views."""

    def __init__(self, config: CollectionConfig) -> None:
        self._config = config
        self._rows = 0
        self._seqs = np.empty(0, np.int64)
        self._vectors = np.empty((0, config.dims), config.dtype)
        self._norms = np.empty(0, np.float32) if config.metric == "cosine" else None
        self._columns = GrowingColumns()

    def append(self, seqs: NDArray[np.int64], user: F32, turn: Turn) -> None:
        vectors, norms = to_stored(user, self._config, turn)
        end = self._rows + len(seqs)
        if end > len(self._seqs):
            capacity = max(64, end, 2 * len(self._seqs))
            self._seqs = self._grown(self._seqs, capacity)
            self._vectors = self._grown(self._vectors, capacity)
            self._norms = None if self._norms is None else self._grown(self._norms, capacity)
        self._seqs[self._rows : end], self._vectors[self._rows : end] = seqs, vectors
        if self._norms is not None and norms is not None:
            self._norms[self._rows : end] = norms
        self._rows = end

    def _grown(self, array: NDArray[Any], capacity: int) -> NDArray[Any]:
        larger = np.empty((capacity, *array.shape[1:]), array.dtype)
        larger[: self._rows] = array[: self._rows]
        return larger

    def view(self, live: Live, dead: NDArray[np.int64]) -> Delta:
        """All rows; `live` masks the first len(live) of them (None: all alive), and `dead` die now."""
        n = self._rows
        if live is not None and len(live) < n:
            live = np.concatenate([live, np.ones(n - len(live), np.bool_)])
        norms = None if self._norms is None else self._norms[:n]
        delta = Delta(self._seqs[:n], self._vectors[:n], norms, live, 0, self._columns)
        live, count = kill(delta.find(dead)[1], live, n)
        return replace(delta, live=live, live_rows=count)


class SnapshotKeeper:
    """Holds the newest snapshot of a collection and brings it up to date at the start of every read."""

    def __init__(self, layout: Layout, held: Catalog, config: CollectionConfig) -> None:
        self._layout, self._catalog, self._config = layout, held, config
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._compared = threading.local()  # by thread: its version of the file, and the state that was found then
        self._buffer = _DeltaBuffer(config)

    def glance(self) -> Snapshot | None:
        """The snapshot of this instant without a transaction: where nobody has committed anything since this thread
        last compared it, which SQLite tells at once. None: only `current` can say."""
        version = self._catalog.data_version()  # which each thread counts for itself
        known, compared = self._snapshot, self._compared
        if known is None:
            return None
        if getattr(compared, "version", None) != version:
            with self._catalog.read() as connection:
                compared.version, compared.state = version, catalog.read_state(connection)
        return known if known.state == compared.state else None

    @contextmanager
    def current(self) -> Iterator[tuple[apsw.Connection, Snapshot]]:
        """A read transaction, and the snapshot of that very instant."""
        for attempt in range(_RETRIES):
            with self._catalog.read() as connection:
                snapshot = self._seen(connection, attempt)
                if snapshot is not None:
                    yield connection, snapshot
                    return
            time.sleep(0.001 * attempt)
        raise self._restless()

    def pin(self) -> tuple[apsw.Connection, Snapshot]:
        """The same for as long as the caller wants: a connection in its transaction, for `Catalog.unpin`."""
        for attempt in range(_RETRIES):
            connection = self._catalog.pin()
            try:
                with self._catalog.translated():
                    snapshot = self._seen(connection, attempt)
            except BaseException:
                self._catalog.unpin(connection)
                raise
            if snapshot is not None:
                return connection, snapshot
            self._catalog.unpin(connection)
            time.sleep(0.001 * attempt)
        raise self._restless()

    def _seen(self, connection: apsw.Connection, attempt: int) -> Snapshot | None:
        """The snapshot of this transaction, None where another moment must be tried."""
        try:
            return self._at(connection)
        except FileNotFoundError as error:
            if attempt == _RETRIES - 1:
                raise Damaged(str(error.filename), "is listed in the catalog and missing") from error
            return None
        except Damaged:
            if attempt == _RETRIES - 1 or not self._overtaken(connection):
                raise
            return None

    def _overtaken(self, connection: apsw.Connection) -> bool:
        """Whether the catalog has moved past this transaction, so that its files may already be half removed."""
        newer = self._catalog.pin()
        try:
            return catalog.read_state(newer).epoch != catalog.read_state(connection).epoch
        finally:
            self._catalog.unpin(newer)

    def _restless(self) -> Damaged:
        return Damaged(str(self._layout.root), "changed faster than it could be read")

    @property
    def fresh(self) -> bool:
        """Whether the snapshot held is of this instant, or so little older that it is brought up to date at once."""
        known = self._snapshot
        if known is None or self.glance() is not None:
            return known is not None
        state: State = self._compared.state
        return (
            known.state.epoch == state.epoch
            and state.seq - known.state.seq <= _FEW
            and state.tombstone - known.state.tombstone <= _FEW
        )

    def forget(self) -> None:
        """Drop the snapshot, so that the next read opens every file again."""
        with self._lock:
            self._snapshot = None

    def warm(self) -> None:
        """Copy the vectors of the coded segments into memory, as far as there is room: what answers many queries.

        Opening maps them, which is at once; a search then waits for the pages of every row that it scores in full.
        """
        with self.current():
            pass
        with self._lock:
            known = self._snapshot
            if known is None:
                return
            room = resident_room() - sum(view.first.resident_bytes for view in known.segments if view.first)
            views = []
            for view in known.segments:
                room -= view.segment.vectors.nbytes
                wanted = view.first is not None and not view.segment.in_memory and room >= 0
                views.append(replace(view, segment=view.segment.resident()) if wanted else view)
            if any(new is not old for new, old in zip(views, known.segments, strict=True)):
                self._snapshot = replace(known, sealed=SealedSegments(tuple(views)))

    def _at(self, connection: apsw.Connection) -> Snapshot | None:
        """The snapshot of this transaction, None when another thread has already moved past it."""
        state = catalog.read_state(connection)
        known = self._snapshot
        if known is not None and known.state == state:
            return known
        with self._lock:
            known = self._snapshot
            if known is not None and known.state == state:
                return known
            if known is not None and known.state > state:
                return None
            if known is not None and known.state.epoch == state.epoch:
                self._snapshot = self._advance(connection, known, state)
            else:
                self._snapshot = self._load(connection, known, state)
            return self._snapshot

    def _advance(self, connection: apsw.Connection, known: Snapshot, state: State) -> Snapshot:
        try:
            self._fill(connection, known.state.seq, known.turn)
        except BaseException:
            self._snapshot = None
            raise
        dead = catalog.tombstones_after(connection, known.state.tombstone)
        sealed = known.sealed.without(dead) if len(dead) else known.sealed
        delta = self._buffer.view(known.delta.live, dead)
        return Snapshot(state, known.generation, sealed, delta, calibration=known.calibration, choices=known.choices)

    def _load(self, connection: apsw.Connection, known: Snapshot | None, state: State) -> Snapshot:
        generation = self._generation(connection, known)
        segments = self._views(connection, generation, known.segments if known else ())
        self._buffer = _DeltaBuffer(self._config)
        self._fill(connection, 0, generation.turn if generation else PLAIN)
        delta = self._buffer.view(None, np.empty(0, np.int64))
        return Snapshot(
            state,
            generation,
            SealedSegments(segments),
            delta,
            calibration=_calibration(connection, generation.number) if generation else None,
        )

    def _views(
        self, connection: apsw.Connection, generation: Generation | None, known: tuple[SegmentView, ...]
    ) -> tuple[SegmentView, ...]:
        dead = catalog.tombstones_after(connection, 0)
        opened = {view.segment.number: view for view in known}
        views, room = [], resident_room()
        for number, crc, postings_crc in catalog.rows_of(
            connection,
            "SELECT s.segment, s.manifest_crc, p.manifest_crc FROM segment s LEFT JOIN postings p "
            "ON p.segment=s.segment AND p.generation=? ORDER BY s.segment",
            (generation.number if generation else None,),
        ):
            view = self._view(opened.get(number), number, crc, generation, postings_crc, room)
            room -= view.first.resident_bytes if view.first else 0
            views.append(view.without(dead))
        return tuple(views)

    def _fill(self, connection: apsw.Connection, after: int, turn: Turn) -> None:
        for seqs, vectors in catalog.growing_after(connection, after, self._config.dims, _BLOCK_ROWS):
            self._buffer.append(seqs, vectors, turn)

    def _generation(self, connection: apsw.Connection, known: Snapshot | None) -> Generation | None:
        number = catalog.meta_value(connection, "current_generation")
        if number is None:
            return None
        if known is not None and known.generation is not None and known.generation.number == number:
            return known.generation
        crc = connection.execute("SELECT manifest_crc FROM generation WHERE generation=?", (number,)).get
        try:
            return open_generation(self._layout.generation(number), number, crc)
        except (FileNotFoundError, Damaged) as error:
            if catalog.meta_value(connection, "rotated") != 0:  # without the turn vectors cannot be read
                raise
            log.warning("%s; searching exactly until `nestvec repair` or compact(retrain=True)", error)
            return Generation(number, PLAIN, None)

    def _view(
        self,
        known: SegmentView | None,
        number: int,
        crc: int,
        generation: Generation | None,
        postings_crc: int | None,
        room: int,
    ) -> SegmentView:
        segment = known.segment if known else open_segment(self._layout.segment(number), number, crc, self._config)
        columns = known.columns if known else SealedColumns(segment.seqs)
        if generation is None or generation.model is None:
            return SegmentView(segment, None, segment.rows, None, None, columns)
        if known is not None and known.generation == generation.number:
            first = known.first
        elif postings_crc is None:
            first = code_vectors(generation.model, segment.vectors)
        else:
            first = self._first_stage(segment, generation.number, generation.model, postings_crc, room)
        return SegmentView(segment, None, segment.rows, first, generation.number, columns)

    def _first_stage(self, segment: Segment, generation: int, model: Model, postings_crc: int, room: int) -> FirstStage:
        path = self._layout.posting_lists(generation, segment.number)
        try:
            return open_postings(path, postings_crc, model, room)
        except FileNotFoundError:
            if not segment.path.exists():
                raise
            log.warning("%s is missing; rebuilding the posting lists from the vectors", path)
        except Damaged as error:
            log.warning("%s; quarantined, rebuilding the posting lists from the vectors", error)
        return self._rebuild(segment, generation, model, postings_crc, room)

    def _rebuild(self, segment: Segment, generation: int, model: Model, postings_crc: int, room: int) -> FirstStage:
        """Posting lists are derived: code the segment again, and replace the files if nobody else is at it."""
        lock = self._layout.maintenance_lock()
        if not lock.try_acquire():
            return code_vectors(model, segment.vectors)
        try:
            path = self._layout.posting_lists(generation, segment.number)
            if path.exists():
                files.new_directory(self._layout.quarantine)
                files.publish(path, self._layout.quarantine / f"{path.name}-{time.time_ns()}")
            with files.staging(self._layout.root, "postings") as directory:
                crc = write_postings(directory, model, segment.vectors, silent)
                files.publish(directory, path)
            self._list_postings(generation, segment.number, crc, postings_crc)
            return open_postings(path, crc, model, room)
        finally:
            lock.release()

    def _list_postings(self, generation: int, segment: int, crc: int, old_crc: int) -> None:
        if crc != old_crc:
            with self._catalog.write() as connection:
                connection.execute(
                    "UPDATE postings SET manifest_crc=? WHERE generation=? AND segment=?", (crc, generation, segment)
                )


def _calibration(connection: apsw.Connection, generation: int) -> Calibration | None:
    """A generation's calibration; a damaged one is as none, for it can be made again."""
    try:
        return read_calibration(connection, generation)
    except Damaged as error:
        log.warning("%s: recall cannot be promised until it is calibrated again", error)
        return None

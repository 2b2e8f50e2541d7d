"""Build: stream batches of any size into one segment, in bounded memory, published by one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestvec.engine.chunking import document_of
from nestvec.engine.coordinates import PLAIN, Turn
from nestvec.engine.intake import Batch, Intake
from nestvec.engine.learned import turns
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
)
from nestvec.engine.progress import Progress, silent
from nestvec.engine.routes import EHI, SOAR, Model, check_route
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot
from nestvec.engine.storage import catalog, files
from nestvec.engine.storage.segment import finish_segment, open_segment
from nestvec.engine.storage.sqlite import clean_errors
from nestvec.engine.training import (
    MIN_TRAINING_ROWS,
    ROTATION_SAMPLE_ROWS,
    decide_rotation,
    sample_rows,
    train_library,
    train_model,
    train_tree,
)
from nestvec.engine.writer import Encode
from nestvec.errors import Conflict, InvalidInput, InvalidRecord
from nestvec.index.ehi.tree import Tree
from nestvec.index.library.search import LibraryConfig

ROTATE = ("auto", "pca", "none")
_BLOCK_ROWS = 8192


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
    rescore: bool,
    route: str | None,
    library: Mapping[str, Any] | None,
    tree: Tree | None,
    encode: Encode,
) -> BuildReport:
    """See `Collection.build`."""
    if rotate not in ROTATE:
        raise InvalidInput(f"rotate must be one of {', '.join(ROTATE)}; got {rotate!r}")
    if rotate == "pca" and not soar:
        raise InvalidInput("rotate='pca' needs soar=True: the rotation belongs to a trained generation")
    if tree is not None and not soar:
        raise InvalidInput("soar=False makes no index: leave it out for a tree")
    settings = check_route(route or SOAR, library, part.config)
    if settings is not None and not soar:
        raise InvalidInput(f"soar=False trains nothing: leave it out for the route {route!r}")
    with maintenance(part, "build"):
        with part.keeper.current() as (_, snapshot):
            pass
        _check_same_route(snapshot, route, settings)
        first = None if tree is None else _tree_turn(snapshot, route, tree, part.config)
        if route == EHI and tree is None and snapshot.generation is None:
            raise InvalidInput("the route 'ehi' needs a trained tree: give it as tree=, or train one on a collection")
        fixed = snapshot.generation is not None or bool(snapshot.segments)
        if rotate == "pca" and fixed and snapshot.turn.rotation is None:
            raise InvalidInput("rotate='pca': this collection already holds unrotated segments; build into a new one")
        settled = fixed or (first.plain if first is not None else rotate == "none")
        wanted = _Wanted(settled, rotate, soar, rescore, partitions, settings, tree, first)
        run = _Build(part, snapshot, wanted, progress or silent)
        with files.staging(part.layout.root, "build") as directory, clean_errors("build"):
            return run.run(directory, batches, rejects, encode)


def _check_same_route(snapshot: Snapshot, route: str | None, settings: LibraryConfig | None) -> None:
    """Raise InvalidInput where a build asks for another index than the one that the collection has."""
    held = snapshot.generation
    if held is None or route is None:
        return
    if route != held.route or (settings is not None and settings.to_json() != held.settings):
        raise InvalidInput(
            f"this collection's index is for the route {held.route!r} with settings {held.settings}; "
            "leave out route and library to use it, or build into a new collection"
        )


def _tree_turn(snapshot: Snapshot, route: str | None, tree: Tree, config: CollectionConfig) -> Turn:
    """What vectors go through under a tree. Raises InvalidInput where the collection, or the route, is another's."""
    tree.check(config.dims)
    if route not in (None, EHI):
        raise InvalidInput(f"a tree is for the route {EHI!r}, got {route!r}")
    if snapshot.generation is not None:
        raise InvalidInput("this collection has an index: put the tree in its place with install_tree")
    turn = turns(PLAIN, tree, config)[0]
    if snapshot.segments and not turn.plain:
        raise InvalidInput("this collection holds vectors as they came: put the tree in with install_tree")
    return turn


@dataclass(frozen=True)
class _Wanted:
    """What a build was asked for. `settled`: whether it is known what vectors go through, while they are read; else
    `turn` says it, or `rotate` how to find out."""

    settled: bool
    rotate: str
    soar: bool
    rescore: bool
    partitions: int | None
    library: LibraryConfig | None
    tree: Tree | None
    turn: Turn | None


class _Build:
    """One build: read, rotate, train, assign, publish."""

    def __init__(self, part: Part, snapshot: Snapshot, wanted: _Wanted, progress: Progress) -> None:
        self.part, self.snapshot, self.wanted, self.progress = part, snapshot, wanted, progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 3)

    def run(self, directory: Path, batches: Iterable[Batch], rejects: Path | None, encode: Encode) -> BuildReport:
        intake = Intake(self.part, directory, self.snapshot, not self.wanted.settled, rejects, encode)
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
            turn, recall, entries = self._settle_turn(directory, intake.rows, entries)
        segment = self._publish_segment(directory, intake.rows, entries)
        generation = self._publish(directory, segment, intake.rows, turn)
        return BuildReport(intake.rows, intake.rejected, turn.rotation is not None, recall, generation, self.seconds)

    def _trains(self, rows: int) -> bool:
        enough = rows >= MIN_TRAINING_ROWS or self.wanted.tree is not None
        return self.snapshot.generation is None and self.wanted.soar and enough

    def _settle_turn(
        self, directory: Path, rows: int, entries: list[files.FileEntry]
    ) -> tuple[Turn, float | None, list[files.FileEntry]]:
        """(turn, prefix recall, files): staged vectors become stored ones where their turn was still open."""
        config, path = self.part.config, directory / "segment" / "vectors.bin"
        if self.wanted.settled:
            sample = sample_rows(files.map_array(path, config.dtype, (rows, config.dims)), ROTATION_SAMPLE_ROWS)
            recall = decide_rotation(sample, config, "none")[1] if self.wanted.soar else None
            return self.snapshot.turn, recall, entries
        staged = files.map_array(path, "float32", (rows, config.dims))
        turn, recall = self.wanted.turn or PLAIN, None
        if self.wanted.turn is None and self._trains(rows):
            sample = sample_rows(staged, ROTATION_SAMPLE_ROWS)
            rotation, recall = decide_rotation(sample, config, self.wanted.rotate)
            turn = Turn(rotation)
        if turn.plain and config.dtype == "float32":
            return turn, recall, entries
        return turn, recall, [self._rewrite(directory, staged, turn), *entries[1:]]

    def _rewrite(self, directory: Path, staged: NDArray[np.float32], turn: Turn) -> files.FileEntry:
        """Replace the staged float32 vectors by turned ones in the collection's dtype."""
        path = directory / "segment" / "vectors.bin"
        files.move(path, directory / "staged.bin")
        writer = files.FileWriter(path)
        try:
            for start in range(0, len(staged), _BLOCK_ROWS):
                block = staged[start : start + _BLOCK_ROWS]
                writer.append(np.asarray(turn.rows(block), self.part.config.dtype))
                files.release(staged)
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

    def _publish(self, directory: Path, segment: Published, rows: int, turn: Turn) -> int | None:
        part, snapshot = self.part, self.snapshot
        path = part.layout.segment(segment.number)
        opened = open_segment(path, segment.number, segment.manifest_crc, part.config)
        model, trained = snapshot.model, None
        if self._trains(rows):
            with self._timed("train"):
                self.progress("train", 0, None)
                total = rows + sum(view.segment.rows for view in snapshot.segments)
                model = self._train(opened.vectors, total)
                trained = publish_generation(part, model, turn)
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

    def _train(self, vectors: NDArray[Any], total: int) -> Model:
        wanted, config = self.wanted, self.part.config
        if wanted.tree is not None:
            return train_tree(vectors, config, wanted.tree, rescore=wanted.rescore)
        if wanted.library is not None:
            return train_library(vectors, config, total, wanted.library)
        return train_model(vectors, config, total, wanted.partitions, rescore=wanted.rescore)

    def _commit(
        self,
        directory: Path,
        segment: tuple[Published, int, int],
        generation: Trained,
        coded: Coded,
    ) -> None:
        """The swap: records, segment, generation and posting lists appear together or not at all."""
        published, rows, first = segment
        with self.part.catalog.attached(directory / Intake.FILE, "staged"), self.part.catalog.write() as connection:
            if catalog.meta_value(connection, "config") != self.part.catalog.config:
                raise Conflict("the configuration changed during the build; build again")
            clash = connection.execute(
                "SELECT s.source, s.id FROM staged.row s JOIN record r ON r.id=s.id ORDER BY s.row LIMIT 1"
            ).get
            if clash is not None:
                id = clash[1] if self.part.config.chunking is None else document_of(clash[1])
                raise InvalidRecord(clash[0], id, "the collection got a record of this id during the build")
            connection.execute(
                "INSERT INTO record(seq, id, payload, text, crc) "
                "SELECT ?+row, id, payload, text, crc FROM staged.row ORDER BY row",
                (first,),
            )
            list_publication(connection, published, rows, generation, coded)
            files.crash_point("build-before-commit")

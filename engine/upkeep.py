"""What keeps a collection in order, brings records in and out in bulk, and checks it: the verbs beside its records'."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from nestvec.engine import build as building
from nestvec.engine import compaction, importing
from nestvec.engine import export as exporting
from nestvec.engine.build import BuildReport
from nestvec.engine.calibration.points import Calibration
from nestvec.engine.calibration.run import calibrate, worth_calibrating
from nestvec.engine.coordinates import F32
from nestvec.engine.export import ExportReport
from nestvec.engine.filters.declared import Fields
from nestvec.engine.filters.tree import FilterLike, as_filter
from nestvec.engine.intake import Batch
from nestvec.engine.learned import InstallReport, install_tree
from nestvec.engine.maintenance import Part
from nestvec.engine.memory import give_back
from nestvec.engine.progress import Progress, silent
from nestvec.engine.reconfigure import declare_fields
from nestvec.engine.record import CompactResult, Record, SealResult, UpsertResult
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.verification import verify_files
from nestvec.index.ehi.tree import Tree


class Upkeep(ABC):
    """The part of `Collection` that is seldom called."""

    config: CollectionConfig
    _part: Part

    @abstractmethod
    def upsert(self, records: Sequence[Record]) -> UpsertResult:
        """See `Collection.upsert`."""

    @abstractmethod
    def _encode_documents(self, texts: Sequence[str]) -> F32: ...

    @abstractmethod
    def _encode_queries(self, texts: Sequence[str]) -> F32: ...

    @abstractmethod
    def _queries(self, vectors: ArrayLike | None, texts: Sequence[str] | None) -> F32: ...

    @abstractmethod
    def _reconfigure(self) -> None: ...

    def calibrate(
        self,
        queries: ArrayLike | None = None,
        *,
        texts: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Calibration | None:
        """Measure which plans give which recall at which cost, for later searches to choose from.

        `queries` [b, dims] or `texts` are real questions, 1,000 or more if there are; the more like those to come, the
        better the promise. Without any, pieces of stored texts are asked, or documents held out of the index. Returns
        what was measured; None where there is nothing to choose: no index, or another library's. A new index is
        calibrated by itself. Raises InvalidInput for fewer queries than 100.
        """
        asked = None if queries is None and texts is None else self._queries(queries, texts)
        encode = None if self.config.encoder is None else self._encode_queries
        try:
            return calibrate(self._part, asked, encode, progress or silent)
        finally:
            give_back()

    def calibration(self) -> Calibration | None:
        """What was measured last, with all operating points; None where nothing was."""
        with self._part.keeper.current() as (_, snapshot):
            held = snapshot.calibration
            return None if held is None else replace(held, stale=held.stale_at(snapshot.rows))

    def _calibrate_new(self, progress: Progress) -> None:
        """Calibrate an index that was not yet."""
        with self._part.keeper.current() as (_, snapshot):
            fresh = snapshot.calibration is None and worth_calibrating(snapshot)
        if fresh:
            self.calibrate(progress=progress)

    def seal(self, *, progress: Progress | None = None) -> SealResult:
        """Move the growing rows into a segment; the first seal over 1000 rows also trains a generation."""
        result = compaction.seal(self._part, progress or silent)
        self._calibrate_new(progress or silent)
        return result

    def compact(self, *, retrain: bool = False, progress: Progress | None = None) -> CompactResult:
        """Merge all segments into one without dead rows; `retrain` trains a new generation on it."""
        result = compaction.compact(self._part, retrain=retrain, progress=progress or silent)
        self._calibrate_new(progress or silent)
        give_back()
        return result

    def install_tree(self, tree: Tree, *, progress: Progress | None = None) -> InstallReport:
        """File all sealed rows by a learned tree, as a new generation for the route "ehi"; seal growing rows first.

        With an adapter every stored vector is replaced by what it makes of it, once and for good: `get` and `export`
        give those, and `info` says `adapted`. Keep the source if you may want the vectors as they were. Raises
        InvalidInput for a tree that does not fit. The new index is calibrated by itself.
        """
        self._reconfigure()
        report = install_tree(self._part, tree, progress or silent)
        self._calibrate_new(progress or silent)
        give_back()
        return report

    def build(
        self,
        batches: Iterable[Batch],
        *,
        rotate: str = "auto",
        rejects: Path | None = None,
        progress: Progress | None = None,
        partitions: int | None = None,
        soar: bool = True,
        rescore: bool = True,
        route: str | None = None,
        library: Mapping[str, Any] | None = None,
        tree: Tree | None = None,
        calibrate: bool = True,
    ) -> BuildReport:
        """Stream new records into one segment, in bounded memory; they appear together, at the end.

        `rotate`: "auto" measures whether a PCA rotation makes short prefixes better and uses it then; "pca" always;
        "none" never. It is fixed by a collection's first build; later ones inherit it. `rejects`: bad rows are written
        there as JSON lines and skipped, instead of stopping the build with InvalidRecord. `progress(stage, done,
        total)` is called often. `partitions`: posting lists of a new generation. `rescore=False`: a new generation
        keeps no int8 rows, for a smaller index and slower searches. `soar=False` trains nothing.
        `route` "faiss" or "scann": a new generation's index is that library's, made with the settings `library`, such
        as {"factory": "IVF256,PQ48x4fs", "dims": 192} (see docs/concepts.md). Raises MissingDependency without it.
        `tree`: a learned tree for the route "ehi", trained elsewhere on vectors of this kind.
        `calibrate=False`: a new index is not measured; recall cannot be asked for until `Collection.calibrate`.
        """
        self._reconfigure()
        report = building.build(
            self._part,
            batches,
            rotate=rotate,
            rejects=rejects,
            progress=progress,
            partitions=partitions,
            soar=soar,
            rescore=rescore,
            route=route,
            library=library,
            tree=tree,
            encode=self._encode_documents,
        )
        if calibrate:
            started = time.monotonic()
            with self._part.keeper.current():  # the index is opened, as it would be for the first search
                opened = time.monotonic()
            self._calibrate_new(progress or silent)
            ended = time.monotonic()
            report.seconds.update(open=round(opened - started, 3), calibrate=round(ended - opened, 3))
        give_back()
        return report

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        filter: FilterLike | None = None,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write the records of this instant, or those that match, in the order of their writing, into one file.

        `format`: "parquet" or "jsonl" (ids, vectors, texts, payloads), "npz" (vectors and ids), "npy" (vectors); None:
        by the file's name. Builds and imports read all of them back. With chunking the records are chunks. The file
        appears whole, in place of an older one, or not at all. Raises InvalidInput, MissingDependency.
        """
        wanted = None if filter is None else as_filter(filter)
        return exporting.export(self._part, Path(path), format, wanted, progress or silent)

    def import_batches(self, batches: Iterable[Batch], *, progress: Progress | None = None) -> int:
        """Upsert the rows of a source, batch by batch, each durable on its own; how many rows.

        Meant for records that come beside those that are there; `build` is faster for many new ones. A bad row stops
        it with InvalidRecord; the rows before its batch stay written.
        """
        return importing.import_batches(self.upsert, batches, progress or silent)

    def verify(self) -> None:
        """Read every stored byte and compare it with its checksum. Raises Damaged naming the first bad file."""
        verify_files(self._part.layout, self._part.catalog, self.config)

    def declare(self, fields: Fields, *, expected: str | None = None) -> None:
        """Declare the types of more payload fields: what is stored must fit, and every write is held to them from now.

        `expected`: the `config_version` that the change is meant for. Raises Conflict, InvalidInput.
        """
        declare_fields(self._part.catalog, fields, expected)
        self._reconfigure()

"""What seal, compact and build share: the lock, numbers for new directories, and their publication."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
from numpy.typing import NDArray

from nestvec.engine.coordinates import Turn
from nestvec.engine.keeper import SnapshotKeeper
from nestvec.engine.progress import Progress
from nestvec.engine.routes import Model, lists_of
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.storage import catalog, files
from nestvec.engine.storage.generation import write_generation, write_postings
from nestvec.engine.storage.layout import Layout
from nestvec.engine.storage.segment import Segment
from nestvec.errors import OutcomeUnknown

LOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Part:
    """A collection's working parts, as maintenance needs them."""

    layout: Layout
    catalog: catalog.Catalog
    keeper: SnapshotKeeper
    config: CollectionConfig


@dataclass(frozen=True)
class Published:
    """A directory that has its final name and waits for the catalog to list it."""

    number: int
    manifest_crc: int
    turned: bool = False


@contextmanager
def maintenance(part: Part, what: str) -> Iterator[None]:
    """Hold the maintenance lock, with the leftovers of any killed maintenance swept away first and last."""
    lock = part.layout.maintenance_lock()
    lock.acquire(LOCK_SECONDS, what)
    try:
        with files.clean_disk_errors(what):
            part.layout.sweep(part.catalog)
            try:
                yield
            except OutcomeUnknown:
                raise  # the commit may yet turn out to list the new directories
            except BaseException:
                part.layout.sweep(part.catalog)
                raise
    finally:
        lock.release()


def next_number(part: Part, table: str) -> int:
    """The next key of `table`; the maintenance lock keeps it ours until the transaction that uses it."""
    with part.catalog.read() as connection:
        return catalog.last_number(connection, table) + 1


def publish_segment(part: Part, directory: Path, manifest_crc: int) -> Published:
    """Give a finished staging directory its final name."""
    number = next_number(part, "segment")
    files.crash_point("segment-staged")
    files.publish(directory, part.layout.segment(number))
    files.crash_point("segment-renamed")
    return Published(number, manifest_crc)


def publish_generation(part: Part, model: Model, turn: Turn) -> Published:
    """Write a trained model into its final directory."""
    number = next_number(part, "generation")
    with files.staging(part.layout.root, "generation") as directory:
        crc = write_generation(directory, model, turn)
        files.crash_point("generation-staged")
        files.publish(directory, part.layout.generation(number))
    files.crash_point("generation-renamed")
    return Published(number, crc, not turn.plain)


def publish_postings(
    part: Part, generation: int, segment: int, model: Model, vectors: NDArray[Any], progress: Progress
) -> int:
    """Code a segment's vectors and write its posting lists and int8 rows into their final directory.

    Progress is told as stages "assign" and "rescore". Returns the manifest's crc32c.
    """
    with files.staging(part.layout.root, "postings") as directory:
        crc = write_postings(directory, model, vectors, progress)
        files.crash_point("postings-staged")
        files.publish(directory, part.layout.posting_lists(generation, segment))
    files.crash_point("postings-renamed")
    return crc


def list_segment(connection: apsw.Connection, segment: Published, rows: int) -> None:
    """Inside the publishing transaction: the segment exists from this commit on."""
    connection.execute(
        "INSERT INTO segment(segment, rows, manifest_crc) VALUES (?, ?, ?)",
        (segment.number, rows, segment.manifest_crc),
    )


def list_generation(connection: apsw.Connection, generation: Published, partitions: int) -> None:
    """Inside the publishing transaction: this generation is the current one from this commit on."""
    connection.execute(
        "INSERT INTO generation(generation, manifest_crc, partitions) VALUES (?, ?, ?)",
        (generation.number, generation.manifest_crc, partitions),
    )
    connection.execute("UPDATE meta SET value=? WHERE key='current_generation'", (generation.number,))
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('rotated', ?)", (int(generation.turned),))


def list_postings(connection: apsw.Connection, generation: int, segment: int, manifest_crc: int) -> None:
    """Inside the publishing transaction: these posting lists belong to the segment from this commit on."""
    connection.execute(
        "INSERT INTO postings(generation, segment, manifest_crc) VALUES (?, ?, ?)", (generation, segment, manifest_crc)
    )


Trained = tuple[Published | None, Model | None]
"""The generation trained for a publication (None: the current one stays) and the model that codes it."""
Coded = tuple[int | None, list[tuple[int, int]]]
"""The generation of some posting lists, and (segment, manifest crc32c) of each."""


def code_segments(part: Part, generation: int, model: Model, segments: list[Segment], progress: Progress) -> Coded:
    """Code and publish the posting lists and int8 rows of several segments."""
    return generation, [
        (each.number, publish_postings(part, generation, each.number, model, each.vectors, progress))
        for each in segments
    ]


def list_publication(
    connection: apsw.Connection, segment: Published, rows: int, generation: Trained, coded: Coded
) -> None:
    """Inside the publishing transaction: all that a seal or a build made appears with this commit."""
    list_segment(connection, segment, rows)
    trained, model = generation
    if trained is not None and model is not None:
        list_generation(connection, trained, lists_of(model))
    number, postings = coded
    if number is not None:
        for segment_number, crc in postings:
            list_postings(connection, number, segment_number, crc)
    catalog.bump_epoch(connection)

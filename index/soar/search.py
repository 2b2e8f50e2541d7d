"""Search posting lists: choose partitions, sum 4-bit codes, hand the best rows to the funnel."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nestvec.errors import InvalidInput
from nestvec.index import kernels
from nestvec.index.postings import Postings
from nestvec.index.protocol import Prepared
from nestvec.index.quantize import lookup_table
from nestvec.index.selection import Rows, top_positions
from nestvec.index.soar.train import SoarModel
from nestvec.index.vectors import check_allowed, check_query
from nestvec.index.work import Work


@dataclass(frozen=True, eq=False, slots=True)
class SoarQuery(Prepared):
    """Lists to visit, best first (int32 [p]), what each adds to an estimate (float32 [p]), and the code table."""

    lists: npt.NDArray[np.int32]
    list_bias: npt.NDArray[np.float32]
    table: npt.NDArray[np.uint8]
    scale: float
    base: float
    micros: float


class SoarIndex:
    """One segment's posting lists under a model: a first stage."""

    name = "soar"

    def __init__(self, model: SoarModel, postings: Postings) -> None:
        """Raises InvalidInput where the postings were not made by this model."""
        pairs = (model.codebook.shape[0] + 1) // 2
        if postings.lists != model.config.partitions or postings.codes.shape[1] != pairs:
            raise InvalidInput(
                f"the model has {model.config.partitions} lists of {pairs}-byte codes, "
                f"the postings {postings.lists} of {postings.codes.shape[1]}: assign the rows with this model"
            )
        if (postings.bias is not None) != (model.metric == "l2"):
            raise InvalidInput(f"the postings were not assigned for metric {model.metric!r}")
        self.model = model
        self.postings = postings
        self._squares = np.einsum("ij,ij->i", model.centroids, model.centroids) if model.metric == "l2" else None

    @property
    def n_rows(self) -> int:
        """Rows in the segment."""
        return self.postings.n_rows

    @property
    def max_probes(self) -> int:
        """Posting lists there are."""
        return self.model.config.partitions

    @property
    def resident_bytes(self) -> int:
        """Bytes of the posting lists."""
        return self.postings.nbytes

    def prepare(self, query: npt.NDArray[np.float32], probes: int) -> SoarQuery:
        """Choose the best min(probes, max_probes) lists, ties to the lower, and tabulate the codes.

        The estimate is <q, c> + <q, coded residual> on the prefix; for "l2" twice that - ||x||^2, which differs
        from the score by ||q||^2 alone. What lies beyond the prefix is missing from both.
        """
        started = time.perf_counter()
        if probes < 1:
            raise InvalidInput(f"probes must be >= 1, got {probes}")
        model = self.model
        query = check_query(query, model.dims)
        # Not BLAS: waking its threads for 50 microseconds of work costs milliseconds on a busy machine.
        products = np.einsum("ij,j->i", model.centroids, query[: model.config.partition_dims])
        table, scale, base = lookup_table(query[: model.config.code_dims], model.codebook)
        order = products
        if self._squares is not None:
            products, scale, base = 2.0 * products, 2.0 * scale, 2.0 * base
            order = products - self._squares
        lists = top_positions(order, np.arange(order.shape[0]), min(probes, self.max_probes)).astype(np.int32)
        micros = (time.perf_counter() - started) * 1e6
        return SoarQuery(lists, products[lists].astype(np.float32), table, scale, base, micros)

    def candidates(
        self, prepared: Prepared, keep: int, allowed: npt.NDArray[np.bool_] | None, work: Work
    ) -> npt.NDArray[np.int64]:
        """At most `keep` distinct allowed rows of the chosen lists, best estimate first."""
        if not isinstance(prepared, SoarQuery):
            raise InvalidInput(f"expected a query prepared by a soar index, got {type(prepared).__name__}")
        if keep < 1:
            raise InvalidInput(f"keep must be >= 1, got {keep}")
        started = time.perf_counter()
        allowed = check_allowed(allowed, self.n_rows)
        held = self.postings
        rows: Rows
        rows, _, scanned = kernels.scan_lists(
            held.codes,
            held.offsets,
            held.counts,
            held.rows,
            prepared.lists,
            prepared.list_bias,
            prepared.table,
            prepared.scale,
            prepared.base,
            held.bias,
            None if allowed is None else np.ascontiguousarray(allowed).view(np.uint8),
            min(keep, max(1, self.n_rows)),
        )
        work.partitions += prepared.lists.shape[0]
        work.codes += scanned
        work.bytes += scanned * held.codes.shape[1]
        if "probe" not in work.micros:  # once, however many segments share the prepared query
            work.micros["probe"] = prepared.micros
            work.bytes += self.model.centroids.nbytes
        work.add_micros("scan", (time.perf_counter() - started) * 1e6)
        return rows

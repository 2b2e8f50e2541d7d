"""What every first stage offers the funnel: candidates, best estimate first."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from nestvec.index.work import Work


class Prepared:
    """One query made ready for one model; only the first stage that made it looks inside."""

    __slots__ = ()


class FirstStage(Protocol):
    """A source of candidate rows of one segment. Rows are 0..n_rows-1."""

    @property
    def name(self) -> str:
        """The route's name in plans, e.g. "soar"."""

    @property
    def n_rows(self) -> int:
        """Rows in the segment."""

    @property
    def max_probes(self) -> int:
        """Partitions there are; that many probes visit everything."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory the segment's part takes (the shared model not counted)."""

    def prepare(self, query: npt.NDArray[np.float32], probes: int) -> Prepared:
        """Do the work that all segments of one model share. `query` is float32 [dims]; probes >= 1."""

    def candidates(
        self, prepared: Prepared, keep: int, allowed: npt.NDArray[np.bool_] | None, work: Work
    ) -> npt.NDArray[np.int64]:
        """At most `keep` distinct rows of the visited partitions, best estimate first.

        Rows that `allowed` (bool [n_rows]) rules out never appear and never take a place of the `keep`.
        """

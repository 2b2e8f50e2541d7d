"""What a search works on, and what its arrays must look like: Model, Segment and Plan, in numpy.

Their constructors refuse what a search would read out of bounds, with the errors of the C++ ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nestvec.index.kernels.checks import (
    BLOCK,
    INT8_STEP,
    MAX_RESCORE_DIMS,
    TILE,
    check_array,
    check_count,
    check_finite,
    check_lists,
    check_margin,
    check_scale,
)
from nestvec.index.kernels.reference_router import Router

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """What all segments share: P centroids of pd dims, M codebooks of 16 centres of s dims, and scales.

    router: what chooses the lists of a query; None: the scores of the centroids do, and they come as bytes.
    centroid_codes (None with a router): u8 [ceil(pd/4), P rounded up to 16, 4]; [g, l, t] is rint(dimension 4g + t of
    centroid l / centroid_scale) + 128, padding 128. centroid_bias: f32 [P], added to twice the product for l2, else 0.
    codebook: f32 [M, 16, s]. rescore_scale: f32 [rd], the step of each dimension of the int8 rows; rd = 0: no rows.
    spread: the length that a margin is measured in, times the query's from centre f32 [dims].
    """

    l2: bool
    dims: int
    centroid_codes: npt.NDArray[np.uint8] | None
    centroid_scale: float
    centroid_bias: Float32
    codebook: Float32
    rescore_scale: Float32
    spread: float
    centre: Float32
    router: Router | None = None

    def __post_init__(self) -> None:
        check_count(self.dims, "dims")
        check_array(self.centroid_bias, "centroid_bias", [np.float32], (-1,))
        check_count(self.lists, "the number of centroids")
        self._check_routing()
        check_array(self.codebook, "codebook", [np.float32], (-1, 16, -1))
        check_array(self.rescore_scale, "rescore_scale", [np.float32], (-1,))
        check_array(self.centre, "centre", [np.float32], (self.dims,))
        if self.codebook.size == 0:
            raise ValueError("codebook must not be empty")
        if self.rescore_dims % INT8_STEP or self.rescore_dims > MAX_RESCORE_DIMS:
            raise ValueError(
                f"rescore_scale must have a multiple of {INT8_STEP} dims, at most {MAX_RESCORE_DIMS}; "
                f"got {self.rescore_dims}"
            )
        check_scale(self.centroid_scale, "centroid_scale")
        check_scale(self.spread, "spread", zero=True)
        for name in ("centroid_bias", "codebook", "rescore_scale", "centre"):
            check_finite(getattr(self, name), name)

    def _check_routing(self) -> None:
        if (self.centroid_codes is None) == (self.router is None):
            raise ValueError("a model has either centroid_codes or a router")
        if self.centroid_codes is not None:
            tiles = (self.lists + TILE - 1) // TILE * TILE
            check_array(self.centroid_codes, "centroid_codes", [np.uint8], (-1, tiles, 4))
            if not len(self.centroid_codes):
                raise ValueError("centroid_codes must not be empty")
        if self.router is not None:
            if self.router.leaves != self.lists:
                raise ValueError(f"the router has {self.router.leaves} leaves, the model {self.lists} lists")
            if max(self.router.dims, self.router.centroids.shape[1]) > self.dims:
                raise ValueError(f"the router and its centroids must see at most {self.dims} dims")

    @property
    def lists(self) -> int:
        """Number of centroids."""
        return len(self.centroid_bias)

    @property
    def pairs(self) -> int:
        """Bytes of a posting's code: two sub-quantisers each, and for l2 one of the row's length."""
        return (len(self.codebook) + 1) // 2 + int(self.l2)

    @property
    def rescore_dims(self) -> int:
        """Dims of an int8 row; 0: no rows."""
        return len(self.rescore_scale)


@dataclass(frozen=True, eq=False, slots=True)
class GatheredRows:
    """The int8 rows of a segment for a `Segment` to read in place of its own; arrays as there.

    They are kept. The C++ one copies them into memory, those of a list together: no result changes.
    """

    offsets: Int64
    counts: npt.NDArray[np.int32]
    rows: npt.NDArray[np.uint32]
    rescore: npt.NDArray[np.uint8]
    rescore_bias: Float32 | None

    def __post_init__(self) -> None:
        check_array(self.rescore, "rescore", [np.uint8], (-1, -1))
        check_array(self.rows, "rows", [np.uint32], (-1,))
        check_array(self.counts, "counts", [np.int32], (-1,))
        check_array(self.offsets, "offsets", [np.int64], (len(self.counts) + 1,))
        if self.rescore_bias is not None:
            check_array(self.rescore_bias, "rescore_bias", [np.float32], (len(self.rescore),))
            check_finite(self.rescore_bias, "rescore_bias")
        check_lists(self.offsets, self.counts, self.rows, len(self.rescore))


@dataclass(frozen=True, eq=False, slots=True)
class Segment:
    """n rows: their posting lists, int8 rows, vectors and sequence numbers. The arrays are kept, not copied.

    codes u8 [blocks, pairs, 128], offsets i64 [P + 1], counts i32 [P], rows u32 [128 * blocks] are as in Postings;
    rescore u8 [n, rd] and rescore_bias f32 [n] (l2 only) as in RescoreRows; vectors f16 or f32 [n, dims], which may be
    a memory map; seqs i64 [n]; allowed bool or u8 [n]: rows where it is 0 are never found. `gathered`, of the same
    lists and rows, stands in place of rescore and rescore_bias.
    """

    codes: npt.NDArray[np.uint8]
    offsets: Int64
    counts: npt.NDArray[np.int32]
    rows: npt.NDArray[np.uint32]
    bias_top: float
    bias_step: float
    rescore: npt.NDArray[np.uint8] | None
    rescore_bias: Float32 | None
    vectors: Float32 | npt.NDArray[np.float16]
    seqs: Int64
    allowed: npt.NDArray[np.bool_] | npt.NDArray[np.uint8] | None
    gathered: GatheredRows | None = None

    def __post_init__(self) -> None:
        check_array(self.codes, "codes", [np.uint8], (-1, -1, BLOCK))
        check_array(self.counts, "counts", [np.int32], (-1,))
        check_array(self.offsets, "offsets", [np.int64], (len(self.counts) + 1,))
        check_array(self.rows, "rows", [np.uint32], (len(self.codes) * BLOCK,))
        check_array(self.vectors, "vectors", [np.float32, np.float16], (-1, -1))
        n = len(self.vectors)
        check_array(self.seqs, "seqs", [np.int64], (n,))
        if self.rescore is not None:
            check_array(self.rescore, "rescore", [np.uint8], (n, -1))
        if self.rescore_bias is not None:
            check_array(self.rescore_bias, "rescore_bias", [np.float32], (n,))
            check_finite(self.rescore_bias, "rescore_bias")
        if self.allowed is not None:
            check_array(self.allowed, "allowed", [np.bool_, np.uint8], (n,))
        check_finite(np.float32(self.bias_top), "bias_top")
        check_scale(self.bias_step, "bias_step", zero=True)
        check_lists(self.offsets, self.counts, self.rows, n)
        if self.gathered is not None:
            self._use_gathered(self.gathered, n)

    def _use_gathered(self, gathered: GatheredRows, n: int) -> None:
        found = len(gathered.rescore), len(gathered.rows)
        if self.rescore is not None or self.rescore_bias is not None or found != (n, len(self.rows)):
            raise ValueError(
                f"gathered int8 rows stand in place of rescore and rescore_bias, for the same {n} rows in "
                f"{len(self.rows)} postings; got {found[0]} in {found[1]}"
            )
        object.__setattr__(self, "rescore", gathered.rescore)
        object.__setattr__(self, "rescore_bias", gathered.rescore_bias)
        object.__setattr__(self, "gathered", None)

    def with_allowed(self, allowed: npt.NDArray[np.bool_] | npt.NDArray[np.uint8] | None) -> Segment:
        """The same segment with another mask, as after a deletion."""
        return replace(self, allowed=allowed)


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """How far a search goes; stages are (dims, keep, margin, int8), margins in units of the model's spread.

    probes: most lists visited. keep: most rows that the codes hand on. cosine: stored stages, but not the final
    scores, are divided by the length of the row's prefix.
    """

    probes: int
    probe_margin: float
    keep: int
    margin: float
    stages: Sequence[tuple[int, int, float, bool]]
    cosine: bool

    def __post_init__(self) -> None:
        check_count(self.probes, "probes")
        check_margin(self.probe_margin, "probe_margin")
        check_count(self.keep, "keep")
        check_margin(self.margin, "margin")
        before = 0, True
        for dims, keep, margin, int8 in self.stages:
            check_count(dims, "a stage's dims")
            check_count(keep, "a stage's keep")
            check_margin(margin, "a stage's margin")
            if int8 and dims % INT8_STEP:
                raise ValueError(f"an int8 stage's dims must be a multiple of {INT8_STEP}, got {dims}")
            if int8 and not before[1]:
                raise ValueError("int8 stages come before stored ones")
            if int8 == before[1] and dims <= before[0]:
                raise ValueError(f"stage dims must ascend, got {dims} after {before[0]}")
            before = dims, bool(int8)

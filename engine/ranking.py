"""The three ways to rank records: by vector ("dense"), by words ("bm25"), or by both ("hybrid")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import apsw
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestvec.engine.coordinates import F32
from nestvec.engine.execute import Found, Rows
from nestvec.engine.fusion import Fusion, reciprocal, weighted
from nestvec.engine.lexical import WordSearch
from nestvec.engine.schema import CollectionConfig, check_text
from nestvec.engine.snapshot import Delta, Snapshot
from nestvec.engine.storage.segment import Segment
from nestvec.errors import InvalidInput
from nestvec.index.scan import exact_search_batch
from nestvec.index.work import Work

Rank = Literal["dense", "bm25", "hybrid"]
RANKS = get_args(Rank)


def check_rank(
    rank: Rank,
    fusion: Fusion | None,
    vectors: ArrayLike | None,
    texts: Sequence[str] | None,
    config: CollectionConfig,
) -> None:
    """Raise InvalidInput unless the collection can rank this way and the queries have what it needs."""
    if rank not in RANKS:
        raise InvalidInput(f"rank must be one of {', '.join(RANKS)}; got {rank!r:.100}")
    if fusion is not None and rank != "hybrid":
        raise InvalidInput(f"a fusion is for rank='hybrid'; got rank={rank!r}")
    if rank == "dense":
        return
    if not config.bm25:
        raise InvalidInput(
            f"rank={rank!r} needs a collection with bm25, which is chosen when it is created: make another one with "
            "bm25=True, export this one and import it there"
        )
    if texts is None:
        raise InvalidInput(f"rank={rank!r} needs the query's text: BM25 finds words")
    for text in texts:
        check_text(text)
    if vectors is not None:
        _check_both(rank, vectors, texts)


def _check_both(rank: Rank, vectors: ArrayLike, texts: Sequence[str]) -> None:
    if rank == "bm25":
        raise InvalidInput("rank='bm25' looks at words alone: send no vector, or rank by 'hybrid'")
    if np.shape(vectors)[:1] != (len(texts),):
        raise InvalidInput(
            f"with texts beside vectors a hybrid query has one of each: got {len(texts)} texts and vectors of shape "
            f"{np.shape(vectors)}"
        )


@dataclass(frozen=True, eq=False)
class Ranking:
    """Some queries at one instant: `vectors` are prepared, unrotated queries f32 [b, dims] (None for "bm25"), `texts`
    their texts (looked at unless "dense"), `dense(vectors, k)` finds the k best rows by vector."""

    rank: Rank
    fusion: Fusion
    vectors: F32 | None
    texts: Sequence[str] | None
    dense: Callable[[F32, int], list[Found]]
    words: WordSearch
    config: CollectionConfig

    def __len__(self) -> int:
        return len(self.texts or ()) if self.vectors is None else len(self.vectors)

    def find(self, connection: apsw.Connection, snapshot: Snapshot, asked: Sequence[int], k: int) -> list[Found]:
        """The k best rows for each of these queries, by their numbers; fewer only where no more can be found.

        Scores are those of the vectors, of BM25, or fused ones. By words alone only rows that hold one are found.
        """
        if self.vectors is None:
            return [self._by_words(connection, snapshot, query, k) for query in asked]
        vectors = self.vectors if len(asked) == len(self.vectors) else self.vectors[list(asked)]
        if self.rank == "dense":
            return self.dense(vectors, k)
        found = self.dense(vectors, self.fusion.candidates(k))
        turned = snapshot.turn.queries(vectors)
        return [
            self._fused(connection, snapshot, turned[i], self._text(query), found[i], k)
            for i, query in enumerate(asked)
        ]

    def _text(self, query: int) -> str:
        return self.texts[query] if self.texts is not None else ""

    def _by_words(self, connection: apsw.Connection, snapshot: Snapshot, query: int, k: int) -> Found:
        rows = self.words.search(connection, snapshot, self._text(query), k, fill=True)
        return Found(*rows, None, Work())

    def _fused(
        self, connection: apsw.Connection, snapshot: Snapshot, vector: F32, text: str, found: Found, k: int
    ) -> Found:
        """The k best of both sides. The dense side alone has min(k, live rows), so as many come out."""
        fusion = self.fusion
        lexical = self.words.search(connection, snapshot, text, fusion.candidates(k), fill=False)
        seqs = np.union1d(found.seqs, lexical[0])
        if not len(seqs):
            return found
        if fusion.kind == "rrf":
            scores = reciprocal(seqs, found.seqs, lexical[0], fusion.share, fusion.rrf_k)
        else:
            dense = _dense_scores(snapshot, self.config, vector, seqs, found)
            scores = weighted(dense, _spread(seqs, lexical), fusion.share)
        best = np.lexsort((seqs, -scores))[:k]
        return Found(seqs[best], scores[best].astype(np.float32), found.plan, found.work, found.choice)


def _spread(seqs: NDArray[np.int64], rows: Rows) -> NDArray[np.float64]:
    """The scores of `rows`, which are among the ascending `seqs`, at their places; 0 elsewhere."""
    scores = np.zeros(len(seqs))
    scores[np.searchsorted(seqs, rows[0])] = rows[1]
    return scores


def _dense_scores(
    snapshot: Snapshot, config: CollectionConfig, query: F32, seqs: NDArray[np.int64], found: Found
) -> NDArray[np.float64]:
    """Dense scores of the live rows `seqs`, ascending: those of `found`, and the others from their vectors."""
    scores = _spread(seqs, (found.seqs, found.scores))
    missing = np.setdiff1d(seqs, found.seqs, assume_unique=True)
    parts: list[Segment | Delta] = [*(view.segment for view in snapshot.segments), snapshot.delta]
    for part in parts:
        positions, rows = part.find(missing)
        if len(rows):
            vectors = part.vectors[rows]
            order, values = exact_search_batch(
                vectors, query[None], len(rows), metric=config.index_metric, work=found.work
            )[0]
            scores[np.searchsorted(seqs, missing[positions[order]])] = values
    return scores

"""BM25 over the words of a collection's texts, kept by SQLite's FTS5 inside the catalog.

Triggers on the table of records keep the words: whatever writes or deletes records does so for its words in the same
transaction, so a record is found by its words exactly as long as it exists, in every process and after any crash. FTS5
reads the texts where they are; none is stored twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import apsw
import numpy as np

from nestvec.engine.execute import Rows
from nestvec.engine.schema import CollectionConfig
from nestvec.engine.snapshot import Snapshot
from nestvec.errors import Damaged

# Porter's stems were worth .003 (squad_dev), .024 (cranfield) and .007 (medquad) of nDCG@10 over whole words.
TOKENIZER = ("porter", "unicode61", "remove_diacritics", "2")

MAX_QUERY_CHARACTERS = 10_000
MAX_TERMS = 64
MAX_POSTINGS = 100_000
"""How many entries of its terms a query reads, its rarest term's aside: FTS5 takes about .4 ms for 1,000."""

_KEPT_COUNT = 1000  # rarer terms are counted for each query: that is quick, and only common ones can be left out
_DRIFT = 0.1

_SCHEMA = """
CREATE VIEW searchable({columns}) AS SELECT {values} FROM record;
CREATE VIRTUAL TABLE words USING fts5({fields}, content='searchable', content_rowid='seq', tokenize='{tokenizer}');
CREATE VIRTUAL TABLE word USING fts5vocab('words', 'row');
CREATE TRIGGER words_of_new AFTER INSERT ON record BEGIN
  INSERT INTO words(rowid, {fields}) SELECT * FROM searchable WHERE seq=NEW.seq;
END;
CREATE TRIGGER words_of_dead BEFORE DELETE ON record BEGIN
  INSERT INTO words(words, rowid, {fields}) SELECT 'delete', * FROM searchable WHERE seq=OLD.seq;
END;
"""

_SEARCH = """
SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ? {only} ORDER BY score DESC, rowid LIMIT ?
"""
_ONLY = "AND substr(?, rowid, 1)=x'01'"


def schema(config: CollectionConfig) -> str:
    """The statements that a catalog needs for BM25 over text and `config.bm25_fields`; empty where it is off."""
    if not config.bm25:
        return ""
    fields = ["text", *(f"field{i}" for i in range(len(config.bm25_fields)))]
    return _SCHEMA.format(
        columns=", ".join(["seq", *fields]),
        values=", ".join(["seq", "text", *map(_payload_string, config.bm25_fields)]),
        fields=", ".join(fields),
        tokenizer=" ".join(TOKENIZER),
    )


def _payload_string(field: str) -> str:
    """SQL for a string of the payload, NULL where it is absent or no string. The names are checked by the config."""
    path = "$" + "".join(f'."{name}"' for name in field.split("."))
    payload = "CAST(payload AS TEXT)"
    return f"CASE json_type({payload}, '{path}') WHEN 'text' THEN json_extract({payload}, '{path}') END"


class WordSearch:
    """Finds the records of one collection by their words; keeps how common the common words are."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._counted_at = 0

    def search(self, connection: apsw.Connection, snapshot: Snapshot, text: str, n: int, *, fill: bool) -> Rows:
        """The n best live rows by BM25, ties by sequence number; any of the text's words may match.

        Words in over half of the texts, which weigh nothing in BM25, and the most common ones of a long text are left
        out, so fewer than n rows may come. With `fill` all (at most MAX_TERMS) words are then searched: min(n, rows
        that hold one of them). `connection` is in the transaction of the snapshot, and a filter's snapshot is
        searched under that filter.
        """
        whole = snapshot.whole or snapshot
        ranked = self._by_count(connection, _terms(connection, text), whole.rows)
        chosen = _affordable(ranked, whole.rows)
        mask = None if snapshot.whole is None else snapshot.seq_mask
        found = _match(connection, chosen, n, mask)
        if fill and len(found[0]) < n and len(chosen) < len(ranked):
            found = _match(connection, [word for _, word in ranked], n, mask)
        return found

    def _by_count(self, connection: apsw.Connection, terms: dict[str, str], rows: int) -> list[tuple[int, str]]:
        """(texts that hold it, the word) of the rarest terms that occur at all, rarest first."""
        if abs(rows - self._counted_at) > _DRIFT * self._counted_at:
            self._counts, self._counted_at = {}, rows
        counted = []
        for term, word in terms.items():
            count = self._counts.get(term)
            if count is None:
                # Only frequent terms are remembered: a word that was new a moment ago must be found now.
                count = connection.execute("SELECT doc FROM word WHERE term=?", (term,)).get or 0
                if count >= _KEPT_COUNT:
                    self._counts[term] = count
            if count:
                counted.append((count, word))
        return sorted(counted)[:MAX_TERMS]


def _terms(connection: apsw.Connection, text: str) -> dict[str, str]:
    """Term -> a word of the text that becomes it. Words are what is searched: a stem's own stem is another one."""
    tokenize = connection.fts5_tokenizer(TOKENIZER[0], list(TOKENIZER[1:]))
    data = text[:MAX_QUERY_CHARACTERS].encode()
    terms: dict[str, str] = {}
    for start, end, term in cast(list[tuple[int, int, str]], tokenize(data, apsw.FTS5_TOKENIZE_QUERY, None)):
        terms.setdefault(term, data[start:end].decode())
    return terms


def _affordable(ranked: Sequence[tuple[int, str]], rows: int) -> list[str]:
    """The rarest word, and the next ones while they weigh something and MAX_POSTINGS lasts."""
    chosen: list[str] = []
    postings = 0
    for count, word in ranked:
        postings += count
        if chosen and (2 * count > rows or postings > MAX_POSTINGS):
            break
        chosen.append(word)
    return chosen


def _match(connection: apsw.Connection, words: Sequence[str], n: int, mask: bytes | None) -> Rows:
    if not words:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    # In quotes nothing is an operator; a word of the tokenizer holds no quote.
    expression = " OR ".join(f'"{word}"' for word in words)
    only, bindings = ("", (expression, n)) if mask is None else (_ONLY, (expression, mask, n))
    rows = cast(list[tuple[int, float]], connection.execute(_SEARCH.format(only=only), bindings).fetchall())
    seqs = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    return seqs, np.fromiter((row[1] for row in rows), np.float32, len(rows))


def verify_words(connection: apsw.Connection, config: CollectionConfig) -> None:
    """Raise Damaged unless the words are those of the live records. SQLite's quick_check, after it, reads the index.

    quick_check reads an FTS5 index by what its connection remembers of it, and calls it corrupt once another process
    has written; opening the table makes the connection look again.
    """
    if not config.bm25:
        return
    connection.execute("SELECT 1 FROM words LIMIT 1")
    odd = connection.execute(
        "SELECT seq FROM record WHERE seq NOT IN (SELECT id FROM words_docsize) "
        "UNION ALL SELECT id FROM words_docsize WHERE id NOT IN (SELECT seq FROM record) LIMIT 1"
    ).get
    if odd is not None:
        raise Damaged(connection.filename, f"the words of record seq {odd} are missing, or outlived it")

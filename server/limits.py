"""The bounds that no setting moves, as `/v1/info` tells them."""

from __future__ import annotations

from nestvec.engine.aliases import MAX_SWITCHES
from nestvec.engine.filters.declared import MAX_FIELDS
from nestvec.engine.filters.tree import MAX_DEPTH as MAX_FILTER_DEPTH
from nestvec.engine.filters.tree import MAX_IN
from nestvec.engine.jobs import MAX_QUEUED
from nestvec.engine.keys import MAX_KEYS
from nestvec.engine.schema import MAX_BM25_FIELDS, MAX_DIMS, MAX_ID_BYTES, MAX_PAYLOAD_BYTES, MAX_TEXT_BYTES
from nestvec.server.wire import MAX_DEPTH, MAX_PAGE

FIXED: dict[str, int | float | None] = {
    "max_dims": MAX_DIMS,
    "max_id_bytes": MAX_ID_BYTES,
    "max_payload_bytes": MAX_PAYLOAD_BYTES,
    "max_payload_depth": MAX_DEPTH,
    "max_text_bytes": MAX_TEXT_BYTES,
    "max_filter_depth": MAX_FILTER_DEPTH,
    "max_filter_values": MAX_IN,
    "max_page": MAX_PAGE,
    "max_fields": MAX_FIELDS,
    "max_bm25_fields": MAX_BM25_FIELDS,
    "max_switches": MAX_SWITCHES,
    "max_keys": MAX_KEYS,
    "max_queued_jobs": MAX_QUEUED,
}

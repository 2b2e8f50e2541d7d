"""From what is asked of a new collection to its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nestvec.engine.chunking import Chunking
from nestvec.engine.schema import CollectionConfig, Dtype, Metric
from nestvec.errors import InvalidInput


def settle(
    dims: int | None,
    metric: Metric,
    granularities: Sequence[int] | None,
    dtype: Dtype,
    encoder: str | None,
    chunking: Chunking | None,
) -> CollectionConfig:
    """What was asked for, with dims and granularities of the encoder. Raises InvalidInput, and what loading it does."""
    chosen = tuple(granularities or ())
    if encoder is None:
        if dims is None:
            raise InvalidInput("a collection needs dims, or an encoder that knows them")
        return CollectionConfig(dims, metric, chosen, dtype, chunking=chunking)
    from nestvec.engine.encoders import load_encoder

    loaded = load_encoder(encoder)
    if dims is not None and dims != loaded.dims:
        raise InvalidInput(f"encoder {encoder!r} makes vectors of {loaded.dims} dims, asked for {dims}")
    if not chosen and len(loaded.granularities) > 1:
        chosen = tuple(loaded.granularities)
    # An encoder without useful prefixes gets the usual ones, for a build to make useful by a rotation.
    return CollectionConfig(loaded.dims, metric, chosen, dtype, encoder, loaded.fingerprint, chunking)


def same(existing: CollectionConfig, wanted: CollectionConfig) -> bool:
    """Whether two configurations are equal, where fingerprints of one and the same model are."""
    from nestvec.engine.encoders import same_fingerprint

    same_model = same_fingerprint(existing.encoder_fingerprint, wanted.encoder_fingerprint)
    return same_model and replace(existing, encoder_fingerprint=wanted.encoder_fingerprint) == wanted

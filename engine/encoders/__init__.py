"""Encoders: texts to nested vectors. `load_encoder(name)` finds one; `static` is the default."""

from nestvec.engine.encoders.fingerprint import same_fingerprint
from nestvec.engine.encoders.protocol import Encoder
from nestvec.engine.encoders.registry import load_encoder, load_same, names

__all__ = ["Encoder", "load_encoder", "load_same", "names", "same_fingerprint"]

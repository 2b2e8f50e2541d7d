"""Fingerprints: whether two encoders make the same vectors.

A fingerprint is a digest, compared for equality. An encoder whose vectors come from elsewhere, and differ in their last
digits from call to call, adds a sketch: some numbers of its vectors of fixed texts, a byte each, compared by angle.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
import numpy.typing as npt

_MARK = "~"
_SAME = 0.999  # rounding to bytes costs .00003, another model's sketch lies near 0


def with_sketch(digest: str, numbers: npt.NDArray[np.float32]) -> str:
    """The fingerprint of this digest and of `numbers` f32 [n], not all zero."""
    scaled = np.rint(numbers * (127 / np.abs(numbers).max())).astype(np.int8)
    return f"{digest}{_MARK}{base64.urlsafe_b64encode(scaled.tobytes()).decode()}"


def same_fingerprint(one: str | None, other: str | None) -> bool:
    """Whether vectors of two fingerprints can be compared."""
    if one == other:
        return True
    if one is None or other is None:
        return False
    (digest, _, sketch), (other_digest, _, other_sketch) = one.partition(_MARK), other.partition(_MARK)
    if digest != other_digest or not sketch or len(sketch) != len(other_sketch):
        return False
    try:
        a, b = _numbers(sketch), _numbers(other_sketch)
    except (ValueError, binascii.Error):
        return False
    return bool(a @ b >= _SAME * np.linalg.norm(a) * np.linalg.norm(b))


def _numbers(sketch: str) -> npt.NDArray[np.float64]:
    return np.frombuffer(base64.urlsafe_b64decode(sketch), np.int8).astype(np.float64)

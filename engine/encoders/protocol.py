"""What an encoder is: texts in, nested unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors of which any prefix named in `granularities` is an embedding too.

    An encoder may be called from several threads at once. The same text gives the same vector, alone or in a batch: to
    the bit, or where a neural network runs, to float32 rounding (1e-5 in each number of a unit vector).
    """

    @property
    def name(self) -> str:
        """The name it is registered under."""

    @property
    def dims(self) -> int:
        """Length of its vectors."""

    @property
    def granularities(self) -> tuple[int, ...]:
        """Useful prefix lengths, ascending; the last is `dims`."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever its vectors change: vectors of two fingerprints cannot be compared."""

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors [len(texts), dims] for questions. Raises InvalidInput naming an unusable text's position."""

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors [len(texts), dims] for stored texts. Raises InvalidInput as encode_queries does."""

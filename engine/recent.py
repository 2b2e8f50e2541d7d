"""A small memory of what was made last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")

KEPT = 8  # users repeat themselves


class Recent(Generic[Key, Made]):
    """What was made for the keys asked for last. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Key, Made] = OrderedDict()

    def get(self, key: Key) -> Made | None:
        """What was kept for the key, None if nothing is."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def keep(self, key: Key, made: Made) -> Made:
        """Keep it, and forget what was not asked for longest."""
        with self._lock:
            self._held[key] = made
            while len(self._held) > KEPT:
                self._held.popitem(last=False)
        return made

"""The base model of a Concept, kept open between its uses."""

from collections.abc import Callable
from threading import RLock
from typing import Any


class Opened:
    """A base model on each device that it was asked for on, and its folder: made when first asked for, and kept.

    Joined Concepts share one of these. `lock` is held by whoever uses a model: it keeps state between its steps (a
    sampler's timesteps, a head's maps), so one thread uses it at a time. A copy has nothing open.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self._kept: dict[tuple, Any] = {}

    def get(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What is kept under a key, by `make` if there is nothing yet."""
        with self.lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]

    def __reduce__(self) -> tuple[type["Opened"], tuple[()]]:
        return Opened, ()

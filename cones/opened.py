"""The base model of a Concept, kept open between its uses."""

from collections.abc import Callable
from threading import RLock
from typing import Any


class Opened:
    """Base models by what they were opened for, each opened when it is first asked for and kept.

    Joined Concepts share one of these. `lock` is held by whoever uses a model: it keeps state between its steps (a
    sampler's timesteps, a head's maps), so one thread uses it at a time. A copy has nothing open.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self._models: dict[Any, Any] = {}

    def get(self, key: Any, open_model: Callable[[], Any]) -> Any:
        """The model of a key, by `open_model` if it is not open yet."""
        with self.lock:
            if key not in self._models:
                self._models[key] = open_model()
            return self._models[key]

    def __reduce__(self) -> tuple[type["Opened"], tuple[()]]:
        return Opened, ()

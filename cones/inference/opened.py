"""Base models that are open, for the Concepts that use them."""

from collections.abc import Callable
from threading import Lock, RLock
from typing import Any
from weakref import WeakValueDictionary


class Opened:
    """A base model on each device that it was asked for on: opened when first asked for, and kept.

    `lock` is held by whoever uses it: a model keeps state between its steps (a sampler's timesteps, a head's maps), so
    one thread uses it at a time.
    """

    def __init__(self, key: tuple) -> None:
        self.key, self.lock = key, RLock()
        self._models: dict[str, Any] = {}

    def on(self, device: str, open_model: Callable[[], Any]) -> Any:
        """The model on a device, by `open_model` if it is not open there yet."""
        with self.lock:
            if device not in self._models:
                self._models[device] = open_model()
            return self._models[device]

    def __reduce__(self) -> tuple[Callable, tuple]:
        return opened, (self.key,)


_ALL: WeakValueDictionary[tuple, Opened] = WeakValueDictionary()
_ALL_LOCK = Lock()


def opened(key: tuple) -> Opened:
    """The one `Opened` of a key in this process; it closes with the last Concept that holds it.

    So that Concepts of one base model, side by side or joined, take the room of one.
    """
    with _ALL_LOCK:
        return _ALL.setdefault(key, Opened(key))

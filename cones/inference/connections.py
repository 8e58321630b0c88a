"""Connections of `cones serve`: those that do not go on are ended, since as many as are allowed shut out all others."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 10.0
"""In which a connection must go on."""


class Connection(H11Protocol):
    """HTTP in which the head of a request is here, and a part of an answer is taken, within `SECONDS`.

    A request that is being answered has the time that the application gives it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_again = self.loop.call_later(SECONDS, self._look, self._state())

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_again.cancel()
        super().connection_lost(exc)

    def _state(self) -> tuple[Any, bool, int]:
        """The request, whether it is being answered, and the bytes of answers that wait to be taken."""
        working = self.cycle is not None and not self.cycle.response_complete
        return self.cycle, working, self.transport.get_write_buffer_size()

    def _look(self, before: tuple[Any, bool, int]) -> None:
        """End the connection if it is as it was, and not for work that goes on here."""
        now = self._state()
        _, working, waiting = now
        if now == before and not (working and waiting == 0):
            self.transport.abort()
        else:
            self._look_again = self.loop.call_later(SECONDS, self._look, now)

"""The errors a person is meant to read: each names the thing, what came, what is allowed and the next step."""

from typing import Any

from cones.common.redaction import redacted

MAY_PASS_CODE = 75
"""Exit code of a process whose error may pass by itself (EX_TEMPFAIL of sysexits.h); of any other error it is 1."""


DAMAGED = "`cones doctor --cache` names what to remove, and `dvc repro` then makes it again"
"""The way out when bytes are not those that were written."""

WHOLE = "copy the whole folder of the base model again"
"""The way out when those of a base model are not."""


class ConesError(Exception):
    """Something the person at the keyboard can put right; shown as one message without a traceback, and without the
    passwords that its text may quote."""

    may_pass = False
    """Whether trying again later may go well with nothing changed: a server away, a lock held."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(redacted(a) if isinstance(a, str) else a for a in arguments))


class Busy(ConesError):
    """Another process holds what is asked for."""

    may_pass = True


class ParamsError(ConesError):
    """`params.yaml` cannot be used; the message holds every mistake found, one a line."""


class DataError(ConesError):
    """Pictures, labels or splits cannot be used as they are."""


class Changed(DataError):
    """Data changed while it was read."""

    may_pass = True


class BackboneError(ConesError):
    """A base model cannot be found, opened or used for what is asked."""


class NotFetched(BackboneError):
    """A base model is on the hub, and nobody here has asked for it."""


class ConceptError(ConesError):
    """A Concept file cannot be read, or does not fit what it is used with."""


class OutOfDate(ConceptError):
    """A row's Concept is not of the settings that its row has, or no longer what was evaluated."""


class SearchError(ConesError):
    """A search cannot go on."""


class Unreachable(BackboneError):
    """A base model's hub cannot be reached."""

    may_pass = True


class TrackingError(ConesError):
    """What is asked of the registry is not there."""


class TrackingAway(TrackingError):
    """The MLflow server or store cannot be used."""

    may_pass = True

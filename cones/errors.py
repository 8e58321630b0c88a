"""The errors a person is meant to read: each names the thing, what came, what is allowed and the next step."""


class ConesError(Exception):
    """Something the person at the keyboard can put right; shown as one message without a traceback."""


class ParamsError(ConesError):
    """`params.yaml` cannot be used; the message holds every mistake found, one a line."""


class DataError(ConesError):
    """Pictures, labels or splits cannot be used as they are."""


class BackboneError(ConesError):
    """A base model cannot be found, opened or used for what is asked."""


class ConceptError(ConesError):
    """A Concept file cannot be read, or does not fit what it is used with."""


class SearchError(ConesError):
    """A search cannot go on."""


class TrackingError(ConesError):
    """The MLflow server or store cannot be used."""

"""The run-time type checker of the tests: beartype, taking an int where a float is asked, as PEP 484 does."""

import inspect
import typing

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def _has_all(protocol: type, instance: object) -> bool:
    """Whether an object is of a protocol, without running its properties, which may load a model (as Python 3.12)."""
    missing = object()
    names = typing._get_protocol_attrs(protocol)
    return all(inspect.getattr_static(instance, name, missing) is not missing for name in names)


_usual = typing._ProtocolMeta.__instancecheck__
typing._ProtocolMeta.__instancecheck__ = lambda protocol, instance: (
    _has_all(protocol, instance)
    if protocol.__module__.startswith("cones.") and getattr(protocol, "_is_runtime_protocol", False)
    else _usual(protocol, instance)
)

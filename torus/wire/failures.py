"""Errors as messages and back: one class of torus.errors for each wire code.

Decides nothing about what an error means: that stands in `torus.errors`.
Implements docs/protocol.md, "Errors".
"""

from torus import errors
from torus.errors import TorusError
from torus.wire.messages import Error

_CLASSES: dict[int, type[TorusError]] = {
    kind.wire_code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TorusError)
}


def to_message(error: TorusError) -> Error:
    """Return the message that carries ``error`` to the other side."""
    return Error(error.wire_code, error.message, error.hint)


def from_message(message: Error) -> TorusError:
    """Return the error that the other side raised; of an unknown code, a `TorusError`."""
    kind = _CLASSES.get(message.wire_code, TorusError)
    return kind(message.message, hint=message.hint)

"""What the operator may say of a disk: its zone and its weight."""

import re

from torus.errors import UsageError
from torus.ring.member import WEIGHT_MAX

_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def weight_number(text: str, what: str) -> int:
    """Return a disk's weight.  Raises: UsageError."""
    if not text.isdigit() or not 0 < int(text) <= WEIGHT_MAX:
        raise UsageError(f"{what} {text!r} is not a whole number from 1 to {WEIGHT_MAX}")
    return int(text)


def zone_name(text: str, what: str) -> str:
    """Return a zone's name.  Raises: UsageError."""
    if not _ZONE.fullmatch(text):
        raise UsageError(
            f"{what} {text[:80]!r} is no name of a zone",
            hint="up to 64 letters, digits, '.', '_' and '-', such as rack-7",
        )
    return text

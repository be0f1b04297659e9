"""How a volume's chunks are kept: the redundancy that an operator asks for.  Pure.

Decides what may be written as a redundancy and how many copies are enough to go on writing.
"""

import re
from dataclasses import dataclass

from torus.errors import UsageError

COPIES_MAX = 8
_REPLICA = re.compile(r"replica:([0-9]{1,3})")
_ERASURE = re.compile(r"erasure:[0-9]+\+[0-9]+")
_HINT = f"write replica:N, with N from 1 to {COPIES_MAX}: the number of copies"


@dataclass(frozen=True, slots=True)
class Scheme:
    """So many whole copies of each chunk, on distinct disks."""

    copies: int

    def __str__(self) -> str:
        return f"replica:{self.copies}"

    @property
    def default_min_copies(self) -> int:
        """Return how many copies are enough to go on writing unless the operator says so."""
        return max(1, self.copies - 1)

    def check_min_copies(self, min_copies: int) -> int:
        """Return ``min_copies`` if writing may go on with so many.

        Raises: UsageError.
        """
        if 1 <= min_copies <= self.copies:
            return min_copies
        raise UsageError(
            f"{min_copies} copies cannot be the least to go on with: {self} keeps {self.copies}",
            hint=f"use a number from 1 to {self.copies}, or leave it out: "
            f"{self.default_min_copies}",
        )


def parse(text: str) -> Scheme:
    """Return the scheme that ``text`` names.

    Raises: UsageError.
    """
    found = _REPLICA.fullmatch(text)
    if found is not None and 1 <= int(found[1]) <= COPIES_MAX:
        return Scheme(int(found[1]))
    if _ERASURE.fullmatch(text):
        raise UsageError(
            f"redundancy {text!r} cannot be had: this release keeps whole copies only", hint=_HINT
        )
    raise UsageError(f"redundancy {text!r} cannot be had: it is none that is known", hint=_HINT)

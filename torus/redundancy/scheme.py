"""How a volume's chunks are kept: the redundancy that an operator asks for.  Pure.

Decides what may be written as a redundancy, on how many disks a chunk lies, how many of them
may be lost, and how many copies are enough to go on writing.  Whether a cluster has so many
disks is decided where a volume is created.
"""

import re
from dataclasses import dataclass

from torus.errors import UsageError
from torus.limits import (
    COPIES_MAX,
    ERASURE_DATA_MAX,
    ERASURE_DATA_MIN,
    ERASURE_PARITY_MAX,
    ERASURE_PARITY_MIN,
)

_REPLICA = re.compile(r"replica:([0-9]{1,3})")
_ERASURE = re.compile(r"erasure:([0-9]{1,3})\+([0-9]{1,3})")
_HINT = (
    f"write replica:N, with N from 1 to {COPIES_MAX}: the number of copies; or erasure:K+M, "
    f"with K from {ERASURE_DATA_MIN} to {ERASURE_DATA_MAX} data shards and "
    f"M from {ERASURE_PARITY_MIN} to {ERASURE_PARITY_MAX} parity shards"
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a chunk is kept as, each part on a disk of its own.

    ``copies``: whole copies while the chunk is open.
    ``data``, ``parity``: shards once it is sealed, of which any ``data`` are enough; both 0
    when it stays in copies.
    """

    copies: int
    data: int = 0
    parity: int = 0

    def __post_init__(self) -> None:
        assert not self.data or self.copies == self.parity + 1, "an open chunk bears M losses"

    def __str__(self) -> str:
        if self.erasure:
            return f"erasure:{self.data}+{self.parity}"
        return f"replica:{self.copies}"

    @property
    def erasure(self) -> bool:
        """Return whether sealed chunks are cut into shards."""
        return self.data > 0

    @property
    def shards(self) -> int:
        """Return how many shards a sealed chunk has: 0 when it stays in copies."""
        return self.data + self.parity

    @property
    def disks_needed(self) -> int:
        """Return on how many disks a chunk lies at most, open or sealed."""
        return max(self.copies, self.shards)

    @property
    def losses(self) -> int:
        """Return how many of a chunk's disks may be lost without losing its content."""
        return self.copies - 1

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
        keeps = f"keeps {self.copies}" + (" of a chunk that is written" if self.erasure else "")
        raise UsageError(
            f"{min_copies} copies cannot be the least to go on with: {self} {keeps}",
            hint=f"use a number from 1 to {self.copies}, or leave it out: "
            f"{self.default_min_copies}",
        )


def replica(copies: int) -> Scheme:
    """Return the scheme of so many whole copies."""
    return Scheme(copies)


def erasure(data: int, parity: int) -> Scheme:
    """Return the scheme of so many data and parity shards."""
    return Scheme(parity + 1, data, parity)


def parse(text: str) -> Scheme:
    """Return the scheme that ``text`` names: replica:N or erasure:K+M.

    Raises: UsageError.
    """
    found = _REPLICA.fullmatch(text)
    if found is not None and 1 <= int(found[1]) <= COPIES_MAX:
        return replica(int(found[1]))
    found = _ERASURE.fullmatch(text)
    if found is not None:
        data, parity = int(found[1]), int(found[2])
        if (
            ERASURE_DATA_MIN <= data <= ERASURE_DATA_MAX
            and ERASURE_PARITY_MIN <= parity <= ERASURE_PARITY_MAX
        ):
            return erasure(data, parity)
    raise UsageError(f"redundancy {text!r} cannot be had: it is none that is known", hint=_HINT)

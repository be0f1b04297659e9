"""Fences: the newest epoch of every volume that this disk has been told of, durable.

A disk refuses appends and deletions of older epochs, whatever clocks and leases say.
Implements docs/format.md, "Fences".
"""

import struct

from torus._fast.crc import checksum
from torus.errors import Corruption, Fenced
from torus.store.disk import Disk

FENCES_FILE = "fences"
_FENCE = struct.Struct("<QII")
FENCE_BYTES = _FENCE.size
_REWRITE_RATIO = 4  # rewrite the file when it has this many entries for each volume
_REWRITE_MIN = 1024


class Fences:
    """The epochs by volume, and the file that keeps them."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._epochs: dict[int, int] = {}
        self._written = 0
        self._torn = False

    def load(self) -> None:
        """Read the file; a torn last entry was never answered and is dropped.

        Raises: Corruption when an entry before the last is damaged, OSError.
        """
        data = self._disk.read_file(FENCES_FILE) or b""
        self._epochs, torn = parse_fences(data)
        self._written = len(data) // _FENCE.size
        if torn or self._written > max(_REWRITE_MIN, _REWRITE_RATIO * len(self._epochs)):
            self.rewrite()

    def get(self, volume: int) -> int:
        """Return the volume's epoch; 0 when it was never fenced here."""
        return self._epochs.get(volume, 0)

    def check(self, volume: int, epoch: int) -> None:
        """Refuse an epoch older than the fence.

        Raises: Fenced.
        """
        fence = self._epochs.get(volume, 0)
        if epoch < fence:
            raise Fenced(f"volume {volume} has epoch {fence} now; epoch {epoch} may not write it")

    def advance(self, volume: int, epoch: int) -> None:
        """Raise the volume's fence to ``epoch``; durable on return.

        Raises: Fenced when it is higher already, OSError.
        """
        self.check(volume, epoch)
        if epoch == self._epochs.get(volume, 0):
            return
        if self._torn:
            self._rewrite({**self._epochs, volume: epoch})
            return
        try:
            self._disk.append_file(FENCES_FILE, _entry(volume, epoch))
        except OSError:
            self._torn = True  # a part may be there: nothing may follow it
            raise
        self._epochs[volume] = epoch
        self._written += 1

    def rewrite(self) -> None:
        """Write one entry for each volume, in place of the grown file."""
        self._rewrite(self._epochs)

    def _rewrite(self, epochs: dict[int, int]) -> None:
        entries = [_entry(volume, epoch) for volume, epoch in sorted(epochs.items())]
        self._disk.replace_file(FENCES_FILE, b"".join(entries))
        self._epochs = epochs
        self._written = len(entries)
        self._torn = False


def parse_fences(data: bytes) -> tuple[dict[int, int], bool]:
    """Return the epochs by volume, and whether the last entry is torn.

    Raises: Corruption when an entry before the last is damaged.
    """
    epochs: dict[int, int] = {}
    whole = len(data) - len(data) % _FENCE.size
    for at in range(0, whole, _FENCE.size):
        volume, epoch, crc = _FENCE.unpack_from(data, at)
        if checksum(data[at : at + _FENCE.size - 4]) != crc:
            if at + _FENCE.size < whole:
                raise Corruption(
                    f"file {FENCES_FILE!r} is damaged at byte {at} of {len(data)}",
                    hint="run 'torus check', then 'torus recover'",
                )
            return epochs, True
        epochs[volume] = max(epoch, epochs.get(volume, 0))
    return epochs, whole != len(data)


def _entry(volume: int, epoch: int) -> bytes:
    body = _FENCE.pack(volume, epoch, 0)[:-4]
    return body + struct.pack("<I", checksum(body))

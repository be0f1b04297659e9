"""Checkpoints of a block map, consistent at one moment while writes go on.

The turn of a checkpoint; `put` appends a page to the log and returns its place:

    for each leaf of begin_checkpoint():      leaf_written(leaf, *put(encode_leaf(leaf)))
    for each directory of dirty_directories():      directory_written(...encode_directory...)
    for each page of dirty_usage_pages():           usage_written(...encode_usage...)
    root = encode_root()            store it, swap the reference to it, then
    end_checkpoint()                or abort_checkpoint() after any failure

A page that encodes to b"" is not stored: tell (index, 0, 0, 0, 0).  Places are (sequence,
offset in 512-byte units, size_bytes, CRC-32C of the page); the chunk must be open.
"""

from typing_extensions import disjoint_base

from torus._fast.leaftree import LeafTree

@disjoint_base
class CheckpointTree(LeafTree):
    @property
    def in_checkpoint(self) -> bool: ...
    def begin_checkpoint(self) -> list[int]:
        """Freeze the map as it is now; return the leaves to write, ascending.

        Raises: LookupError while a checkpoint or a page-out is under way.
        """

    def encode_leaf(self, index: int) -> bytes:
        """The leaf's frozen content; outside a checkpoint its present content (a page-out).

        Raises: LookupError when the leaf is not waiting to be encoded.
        """

    def leaf_written(
        self, index: int, sequence: int, offset: int, size_bytes: int, crc: int
    ) -> None:
        """Take the place of the page that encode_leaf gave; move the live units there.

        The leaf turns clean unless it has changed since.

        Raises: LookupError (not encoded, or the chunk is not open), ValueError.
        """

    def abandon_page_outs(self) -> None:
        """Forget leaves that were encoded outside a checkpoint and could not be written.

        Raises: LookupError while a checkpoint is under way.
        """

    def dirty_directories(self) -> list[int]: ...
    def encode_directory(self, index: int) -> bytes: ...
    def directory_written(
        self, index: int, sequence: int, offset: int, size_bytes: int, crc: int
    ) -> None: ...
    def dirty_usage_pages(self) -> list[int]: ...
    def encode_usage(self, index: int) -> bytes: ...
    def usage_written(
        self, index: int, sequence: int, offset: int, size_bytes: int, crc: int
    ) -> None: ...
    def encode_root(self) -> bytes:
        """The root page, with its own CRC.  Raises: LookupError while pages are not written."""

    def end_checkpoint(self) -> None:
        """The root is durable: thaw.  Raises: LookupError before encode_root."""

    def abort_checkpoint(self) -> None:
        """Give up: everything not written is dirty again, nothing is lost."""

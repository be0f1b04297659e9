"""The leaves of a block map in memory (see leaftree.pyx); BlockMap is the class to use."""

from typing import Self

from typing_extensions import disjoint_base

from torus._fast.usage import Usage

@disjoint_base
class LeafTree:
    def __new__(cls, size_blocks: int, cache_bytes: int) -> Self: ...
    @property
    def size_blocks(self) -> int: ...
    @property
    def mapped_blocks(self) -> int: ...
    @property
    def cache_bytes(self) -> int: ...
    @property
    def usage(self) -> Usage: ...

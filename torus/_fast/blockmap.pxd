"""The block map for other kernels: where the newest copy of each 4 KiB block lies.

`Entry`, `PageRef` and the four hot methods `lookup`, `set_run`, `clear_run` and `resident`
(inherited from LeafTree, declared in leaftree.pxd) may be cimported from here.
"""

from libc.stdint cimport uint64_t

from torus._fast.leaftree cimport LeafTree
from torus._fast.mappages cimport Entry, PageRef


cdef class BlockMap(LeafTree):
    cdef dict _directories_unloaded      # index -> PageRef fields, until load_directory
    cdef dict _usage_unloaded            # index -> PageRef fields, until load_usage
    cdef uint64_t _frozen_size_blocks
    cdef uint64_t _frozen_mapped_blocks

"""The block map for other kernels: where the newest copy of each 4 KiB block lies.

`Entry`, `PageRef` and the four hot methods `lookup`, `set_run`, `clear_run` and `resident`
(inherited from LeafTree, declared in leaftree.pxd) may be cimported from here.
"""

from libc.stdint cimport uint32_t

from torus._fast.familytree cimport FamilyTree
from torus._fast.mappages cimport Entry, PageRef


cdef class BlockMap(FamilyTree):
    cdef dict directories_unloaded       # index -> reference, until load_directory
    cdef dict usage_unloaded             # index -> reference, until load_usage

    cdef tuple expect(self, dict waiting, str level, index, bytes page)
    cdef object recount_directory(self, uint32_t index, dict units)

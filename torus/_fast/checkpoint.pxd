"""Declarations of the checkpointed tree, for blockmap.pyx (see checkpoint.pyx)."""

from libc.stdint cimport uint32_t, uint64_t

from torus._fast.leaftree cimport Directory, Leaf, LeafTree
from torus._fast.mappages cimport PageRef


cdef class CheckpointTree(LeafTree):
    cdef readonly bint in_checkpoint
    cdef bint root_encoded
    cdef Py_ssize_t writing              # leaves that are frozen or encoded and not yet written
    cdef uint64_t frozen_size_blocks
    cdef uint64_t frozen_mapped_blocks

    cdef int require_checkpoint(self, bint leaves_written) except -1
    cdef Leaf* leaf_at(self, index) except NULL
    cdef Directory* directory_at(self, index) except NULL
    cdef list directory_references(self)

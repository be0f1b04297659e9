"""Declarations of the tree of a volume with ancestors, for blockmap.pyx (see familytree.pyx)."""

from libc.stdint cimport uint32_t, uint64_t

from torus._fast.checkpoint cimport CheckpointTree


cdef class FamilyTree(CheckpointTree):
    cdef int require_quiet(self) except -1
    cdef uint64_t depth_piece(self, uint64_t block, uint64_t end, uint32_t* depth) noexcept
    cdef object walk(self, uint64_t block, uint64_t count, Py_ssize_t limit, bint by_depth)

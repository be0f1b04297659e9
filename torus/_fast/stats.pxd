"""Counting in C: what other kernels may use of it."""

from libc.stdint cimport uint64_t


cdef enum:
    BUCKETS = 80


cdef class Histogram:
    cdef uint64_t counts[BUCKETS]
    cdef readonly uint64_t count
    cdef readonly uint64_t sum_ns
    cdef readonly uint64_t max_ns
    cdef int add(self, uint64_t ns, uint64_t count) noexcept nogil


cdef class CommandCounter:
    cdef readonly uint64_t requests
    cdef readonly uint64_t errors
    cdef readonly uint64_t bytes
    cdef readonly Histogram latency

"""Latency histograms and request counters that cost nanoseconds to feed.

Two buckets per octave from 512 ns up; bucket edges are powers of two and one and a half times
powers of two.  Decides nothing about names or rendering.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

cdef extern from *:
    """
    #define torus_log2(value) (63 - __builtin_clzll(value))
    """
    int torus_log2(unsigned long long value) noexcept nogil

cdef enum:
    FIRST_OCTAVE = 9                # bucket 0 ends at 512 ns; the last one has no end


cdef inline int bucket_of(uint64_t ns) noexcept nogil:
    """Return the bucket whose upper edge is the first one at or above ``ns``."""
    cdef int octave
    cdef int bucket
    if ns <= 1 << FIRST_OCTAVE:
        return 0
    octave = torus_log2(ns - 1)
    bucket = 1 + 2 * (octave - FIRST_OCTAVE) + (((ns - 1) >> (octave - 1)) & 1)
    return min(bucket, BUCKETS - 1)


cdef inline uint64_t edge_of(int bucket) noexcept nogil:
    """Return the largest nanoseconds that fall into ``bucket``."""
    if bucket == 0:
        return 1 << FIRST_OCTAVE
    cdef uint64_t octave = <uint64_t>1 << (FIRST_OCTAVE + (bucket - 1) // 2)
    return 2 * octave if (bucket - 1) % 2 else octave + octave // 2


cdef class Histogram:
    """Counts of durations in nanoseconds."""

    def __cinit__(self):
        memset(self.counts, 0, sizeof(self.counts))

    cdef int add(self, uint64_t ns, uint64_t count) noexcept nogil:
        self.counts[bucket_of(ns)] += count
        self.count += count
        self.sum_ns += ns * count
        if ns > self.max_ns:
            self.max_ns = ns
        return 0

    def observe(self, uint64_t ns, uint64_t count=1):
        """Count ``count`` things that took ``ns`` each."""
        self.add(ns, count)

    def snapshot(self):
        """Return [(upper edge in ns, count)] of the buckets up to the last one in use."""
        cdef int last = BUCKETS - 1
        while last > 0 and self.counts[last] == 0:
            last -= 1
        return [(edge_of(bucket), self.counts[bucket]) for bucket in range(last + 1)]

    def quantile_ns(self, double fraction):
        """Return an upper bound of the given quantile, 0 when nothing was counted."""
        cdef uint64_t seen = 0
        cdef int bucket
        for bucket in range(BUCKETS):
            seen += self.counts[bucket]
            if seen and seen >= fraction * self.count:
                return min(edge_of(bucket), self.max_ns)
        return self.max_ns


cdef class CommandCounter:
    """Requests of one kind: how many, how many bytes, how many failed, how long they took."""

    def __cinit__(self):
        self.latency = Histogram()

    def add(self, uint64_t ns, uint64_t requests=1, uint64_t nbytes=0, uint64_t errors=0):
        """Count requests that took ``ns`` each and ``nbytes`` together."""
        self.requests += requests
        self.bytes += nbytes
        self.errors += errors
        self.latency.add(ns, requests)

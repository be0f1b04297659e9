from libc.stdint cimport uint64_t
from posix.types cimport off_t

from torus._fast.record cimport RecordBuilder

cdef enum:
    ZEROES = -2                     # instead of a descriptor: nothing was ever written there

cdef struct Wanted:
    int fd
    off_t offset
    char* dest
    size_t size

# Fill every destination; 0, or the errno of the first read that failed.
cdef int read_wanted(const Wanted* wanted, Py_ssize_t count) noexcept nogil


cdef class BlockIo:
    # 1: all n bytes are in dest; 0: that would have to wait for the disk.
    cdef int read_now(self, uint64_t address, void* dest, size_t n) except -1
    cdef int write_record(self, uint64_t address, RecordBuilder record) except -1
    cdef int write_from(self, uint64_t address, const char* data, size_t n) except -1
    # The descriptor of the file with an address, and where it is there; -1: it lies in no file.
    cdef int file_of(self, uint64_t address, off_t* offset) except -2

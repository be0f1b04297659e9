from libc.stdint cimport uint64_t
from posix.types cimport off_t

from torus._fast.record cimport RecordBuilder

cdef class BlockIo:
    # 1: all n bytes are in dest; 0: that would have to wait for the disk.
    cdef int read_now(self, uint64_t address, void* dest, size_t n) except -1
    cdef int write_record(self, uint64_t address, RecordBuilder record) except -1
    cdef int write_from(self, uint64_t address, const char* data, size_t n) except -1
    # The descriptor of the file with an address, and where it is there; -1: it lies in no file.
    cdef int file_of(self, uint64_t address, off_t* offset) except -2

"""The compiled half of the disk: bytes in and out without a Python object per request.

`BlockIo` is the seam that kernels see; `FileIo` serves it from segment files with
``preadv2(RWF_NOWAIT)`` and ``pwritev``, `PythonIo` from any Python object, for simulated
disks.  Addresses count slot bytes (torus.format.segment).  Errors are OSError with errno;
torus.store decides what they mean.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, EIO, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset, strerror
from posix.types cimport off_t
from posix.uio cimport iovec

from torus._fast.record cimport RecordBuilder

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/uio.h>
    #include <fcntl.h>
    #include <unistd.h>
    #include <limits.h>
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif
    #ifndef IOV_MAX
    #define IOV_MAX 1024
    #endif
    """
    int RWF_NOWAIT
    int IOV_MAX
    ssize_t preadv2(int fd, const iovec* pieces, int count, off_t offset, int flags) nogil
    int c_fallocate "fallocate"(int fd, int mode, off_t offset, off_t size) nogil
    ssize_t pwritev(int fd, const iovec* pieces, int count, off_t offset) nogil
    ssize_t pread(int fd, void* dest, size_t n, off_t offset) nogil
    int posix_fadvise(int fd, off_t offset, off_t size, int advice) nogil
    int POSIX_FADV_WILLNEED

cdef enum:
    PART_SHIFT = 56
    PARTS_MAX = 256

cdef uint64_t ADDRESS_MASK = (<uint64_t>1 << PART_SHIFT) - 1


cdef class BlockIo:
    """What kernels need of a disk."""

    cdef int read_now(self, uint64_t address, void* dest, size_t n) except -1:
        raise NotImplementedError

    cdef int write_record(self, uint64_t address, RecordBuilder record) except -1:
        raise NotImplementedError

    cdef int write_from(self, uint64_t address, const char* data, size_t n) except -1:
        raise NotImplementedError

    cdef int file_of(self, uint64_t address, off_t* offset) except -2:
        return -1

    def read_bytes(self, uint64_t address, Py_ssize_t n):
        """Return ``n`` bytes at ``address``; None when that would have to wait. Raises: OSError."""
        cdef bytes data = PyBytes_FromStringAndSize(NULL, n)
        return data if self.read_now(address, PyBytes_AS_STRING(data), n) else None

    def write_bytes(self, uint64_t address, data):
        """Write all of a bytes-like object at ``address``. Raises: OSError."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.write_from(address, <const char*>view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def write(self, uint64_t address, RecordBuilder record):
        """Write a finished record at ``address``, all of it. Raises: OSError."""
        if record.size == 0:
            raise ValueError("record is not finished")
        self.write_record(address, record)


cdef class FileIo(BlockIo):
    """Segment files: ``segment_bytes`` of slots each, behind a header of ``header_bytes``."""

    cdef int* files
    cdef Py_ssize_t file_count
    cdef uint64_t segment_bytes
    cdef uint64_t header_bytes
    cdef int nowait
    cdef readonly uint64_t writes           # pwritev calls
    cdef readonly uint64_t short_writes

    def __cinit__(self, uint64_t segment_bytes, uint64_t header_bytes):
        self.segment_bytes = segment_bytes
        self.header_bytes = header_bytes
        self.nowait = RWF_NOWAIT

    def __dealloc__(self):
        free(self.files)

    def set_file(self, Py_ssize_t segment, int fd):
        """Make ``fd`` the file of ``segment``; -1 takes it away."""
        cdef int* grown
        if segment < 0:
            raise ValueError(f"there is no segment {segment}")
        if segment >= self.file_count:
            grown = <int*>realloc(self.files, (segment + 1) * sizeof(int))
            if grown == NULL:
                raise MemoryError
            self.files = grown
            while self.file_count <= segment:
                self.files[self.file_count] = -1
                self.file_count += 1
        self.files[segment] = fd

    cdef int file_of(self, uint64_t address, off_t* offset) except -2:
        cdef Py_ssize_t segment = <Py_ssize_t>(address // self.segment_bytes)
        offset[0] = <off_t>(address % self.segment_bytes + self.header_bytes)
        return self.files[segment] if segment < self.file_count else -1

    cdef int locate(self, uint64_t address, off_t* offset) except -1:
        cdef int fd = self.file_of(address, offset)
        if fd < 0:
            raise OSError(EIO, f"disk address {address:#x} lies in no open segment")
        return fd

    cdef int read_now(self, uint64_t address, void* dest, size_t n) except -1:
        cdef off_t offset = 0
        cdef int fd = self.locate(address, &offset)
        cdef iovec piece
        cdef ssize_t got
        piece.iov_base = dest
        piece.iov_len = n
        while True:
            got = preadv2(fd, &piece, 1, offset, self.nowait)
            if got == <ssize_t>n:
                return 1
            if got >= 0 or errno == EAGAIN:
                return 0
            if errno == EINTR:
                continue
            if self.nowait and (errno == EOPNOTSUPP or errno == ENOSYS):
                self.nowait = 0     # tmpfs: memory, so a plain read does not wait either
                continue
            PyErr_SetFromErrno(OSError)

    cdef int write_record(self, uint64_t address, RecordBuilder record) except -1:
        cdef off_t offset = 0
        cdef int fd = self.locate(address, &offset)
        cdef ssize_t wrote
        if record.piece_count > IOV_MAX:
            return self.write_rest(fd, offset, record, 0)
        while True:
            wrote = pwritev(fd, record.pieces, <int>record.piece_count, offset)
            self.writes += 1
            if wrote == record.size:
                return 0
            if wrote >= 0:
                self.short_writes += 1
                return self.write_rest(fd, offset + wrote, record, <size_t>wrote)
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)

    cdef int write_rest(self, int fd, off_t offset, RecordBuilder record, size_t done) except -1:
        cdef bytes rest = record.tobytes()
        return self.write_all(fd, offset, PyBytes_AS_STRING(rest) + done, record.size - done)

    cdef int write_from(self, uint64_t address, const char* data, size_t n) except -1:
        cdef off_t offset = 0
        cdef int fd = self.locate(address, &offset)
        return self.write_all(fd, offset, data, n)

    cdef int write_all(self, int fd, off_t offset, const char* data, size_t n) except -1:
        cdef size_t done = 0
        cdef iovec piece
        cdef ssize_t wrote
        while done < n:
            piece.iov_base = <void*>(data + done)
            piece.iov_len = n - done
            wrote = pwritev(fd, &piece, 1, offset)
            self.writes += 1
            if wrote < 0:
                if errno == EINTR:
                    continue
                PyErr_SetFromErrno(OSError)
            if wrote == 0:
                raise OSError(EIO, "pwritev wrote nothing")
            done += wrote
            offset += wrote
        return 0


cdef class ManyIo(BlockIo):
    """Several disks to read from: the top byte of an address says which."""

    cdef list parts

    def __cinit__(self):
        self.parts = []

    def set_part(self, Py_ssize_t number, BlockIo part not None):
        """Make ``part`` the disk of that number: the next one, or in the place of another."""
        if number < 0 or number > len(self.parts) or number >= PARTS_MAX:
            raise ValueError(f"disk {number} of {len(self.parts)}")
        if number == len(self.parts):
            self.parts.append(part)
        else:
            self.parts[number] = part

    cdef int read_now(self, uint64_t address, void* dest, size_t n) except -1:
        cdef Py_ssize_t number = <Py_ssize_t>(address >> PART_SHIFT)
        if number >= len(self.parts):
            raise OSError(EIO, f"disk address {address:#x} lies on no disk")
        return (<BlockIo>self.parts[number]).read_now(address & ADDRESS_MASK, dest, n)

    cdef int file_of(self, uint64_t address, off_t* offset) except -2:
        cdef Py_ssize_t number = <Py_ssize_t>(address >> PART_SHIFT)
        if number >= len(self.parts):
            return -1
        return (<BlockIo>self.parts[number]).file_of(address & ADDRESS_MASK, offset)


cdef class PythonIo(BlockIo):
    """Any object with ``read_now(address, size) -> bytes | None`` and ``write(address, data)``."""

    cdef object disk

    def __cinit__(self, disk):
        self.disk = disk

    cdef int read_now(self, uint64_t address, void* dest, size_t n) except -1:
        cdef bytes data = self.disk.read_now(address, n)
        if data is None:
            return 0
        if <size_t>len(data) != n:
            raise OSError(EIO, f"short read of {len(data)} bytes, {n} asked")
        memcpy(dest, PyBytes_AS_STRING(data), n)
        return 1

    cdef int write_record(self, uint64_t address, RecordBuilder record) except -1:
        self.disk.write(address, record.tobytes())
        return 0

    cdef int write_from(self, uint64_t address, const char* data, size_t n) except -1:
        self.disk.write(address, PyBytes_FromStringAndSize(data, <Py_ssize_t>n))
        return 0


cdef int read_wanted(const Wanted* wanted, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    cdef size_t done
    cdef ssize_t got
    if count > 1:  # into the disk's queue together, not one after another
        for i in range(count):
            if wanted[i].fd != ZEROES:
                posix_fadvise(wanted[i].fd, wanted[i].offset, <off_t>wanted[i].size,
                              POSIX_FADV_WILLNEED)
    for i in range(count):
        if wanted[i].fd == ZEROES:
            memset(wanted[i].dest, 0, wanted[i].size)
            continue
        done = 0
        while done < wanted[i].size:
            got = pread(wanted[i].fd, wanted[i].dest + done, wanted[i].size - done,
                        wanted[i].offset + <off_t>done)
            if got > 0:
                done += <size_t>got
            elif got == 0:
                return EIO
            elif errno != EINTR:
                return errno
    return 0


def read_files(list places):
    """Return the bytes of each (descriptor, offset, size), read without the interpreter.

    Raises: OSError; EIO where a file ends early.
    """
    cdef Py_ssize_t count = len(places), i
    cdef Wanted* wanted = <Wanted*>malloc(max(count, 1) * sizeof(Wanted))
    cdef list found = []
    cdef bytes data
    cdef int error
    if wanted == NULL:
        raise MemoryError
    try:
        for i in range(count):
            wanted[i].fd, wanted[i].offset, wanted[i].size = places[i]
            data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>wanted[i].size)
            wanted[i].dest = PyBytes_AS_STRING(data)
            found.append(data)
        with nogil:
            error = read_wanted(wanted, count)
    finally:
        free(wanted)
    if error:
        raise OSError(error, strerror(error).decode())
    return found


def fallocate(int fd, int mode, uint64_t offset, uint64_t size):
    """Call fallocate(2), which the standard library has only in its POSIX form.

    Blocks without holding the interpreter.  Raises: OSError.
    """
    cdef int result
    with nogil:
        result = c_fallocate(fd, mode, <off_t>offset, <off_t>size)
    if result < 0:
        PyErr_SetFromErrno(OSError)

"""CRC-32C of buffers.

Kernels cimport `crc32c`; Python calls `checksum` and `block_checksums`.  The arithmetic is in
kernels/crc32c.h; the check value of "123456789" is 0xE3069283.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t

cdef extern from "crc32c.h" nogil:
    uint32_t torus_crc32c(uint32_t crc, const void* data, size_t n)
    uint32_t torus_crc_portable(uint32_t crc, const unsigned char* data, size_t n)
    void torus_crc_init()
    int torus_crc_hardware

torus_crc_init()

HARDWARE = bool(torus_crc_hardware)


cdef uint32_t crc32c(uint32_t crc, const void* data, size_t n) noexcept nogil:
    return torus_crc32c(crc, data, n)


def checksum(data, uint32_t crc=0):
    """Return the CRC-32C of ``data``, continuing from ``crc``."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return torus_crc32c(crc, view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)


def checksum_portable(data, uint32_t crc=0):
    """Return what `checksum` returns, by tables: the oracle of the hardware path."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return torus_crc_portable(crc, <const unsigned char*>view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)


def block_checksums(data, Py_ssize_t block_bytes=4096):
    """Return the CRC-32C of every block of ``data``, each 4 bytes little endian.

    Raises: ValueError when the size of ``data`` is no multiple of ``block_bytes``.
    """
    cdef Py_buffer view
    cdef Py_ssize_t count, i
    cdef uint32_t* out
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if block_bytes <= 0 or view.len % block_bytes:
            raise ValueError(f"{view.len} bytes are not whole blocks of {block_bytes}")
        count = view.len // block_bytes
        result = PyBytes_FromStringAndSize(NULL, count * 4)
        out = <uint32_t*>PyBytes_AS_STRING(result)
        for i in range(count):
            out[i] = torus_crc32c(0, <char*>view.buf + i * block_bytes, <size_t>block_bytes)
        return result
    finally:
        PyBuffer_Release(&view)

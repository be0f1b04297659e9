"""Socket calls that do not go through the event loop: send now, receive soon.

A client with one request in flight answers a reply within microseconds.  Waiting for it in the
event loop costs a sleep and a wake-up of the processor, which is more than all other work for a
4 KiB request; `receive_soon` looks for a short while first.  Who may do that, and for how long,
is decided in torus/gateway/polling.py.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t

cdef extern from * nogil:
    """
    #include <sys/socket.h>
    #include <time.h>
    #if defined(__x86_64__)
    #include <immintrin.h>
    #define torus_relax() _mm_pause()
    #elif defined(__aarch64__)
    #define torus_relax() __asm__ volatile("yield")
    #else
    #define torus_relax() ((void)0)
    #endif
    static void torus_pause(void) {
        for (int i = 0; i < 16; i++) torus_relax();
    }
    static int64_t torus_monotonic_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    """
    ssize_t send(int fd, const void* data, size_t n, int flags)
    ssize_t recv(int fd, void* data, size_t n, int flags)
    int MSG_DONTWAIT, MSG_NOSIGNAL
    int64_t torus_monotonic_ns()
    void torus_pause()


def send_now(int fd, data):
    """Send as much of ``data`` as the socket takes at once; return how many bytes that were.

    An error is not told here: the event loop meets it, too.
    """
    cdef Py_buffer view
    cdef ssize_t sent
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    sent = send(fd, view.buf, view.len, MSG_DONTWAIT | MSG_NOSIGNAL)
    PyBuffer_Release(&view)
    return sent if sent > 0 else 0


def receive_soon(int fd, batch, int64_t patience_ns):
    """Receive into ``batch.get_buffer()``, looking for up to ``patience_ns``; return the bytes.

    0 when nothing came, and at the end of the stream or an error, which the event loop meets,
    too.  Other threads may run meanwhile.
    """
    cdef Py_buffer view
    cdef ssize_t got
    cdef int64_t until
    PyObject_GetBuffer(batch.get_buffer(), &view, PyBUF_WRITABLE)
    got = recv(fd, view.buf, view.len, MSG_DONTWAIT)
    if got < 0 and patience_ns > 0:
        with nogil:
            until = torus_monotonic_ns() + patience_ns
            while got < 0 and (errno == EAGAIN or errno == EINTR):
                if torus_monotonic_ns() >= until:
                    break
                torus_pause()
                got = recv(fd, view.buf, view.len, MSG_DONTWAIT)
    PyBuffer_Release(&view)
    return got if got > 0 else 0

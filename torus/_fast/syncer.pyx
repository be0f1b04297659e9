"""One thread that runs fdatasync for an event loop, without the interpreter's lock.

The loop writes a request into a ring and wakes the thread through an eventfd; the thread
answers the same way.  A future and two wake-ups are all that a flush pays.  Measured against
the standard library's executor in bench/cases/kernels.py.
"""

import os
import threading

from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <sys/eventfd.h>
    #include <time.h>
    #include <unistd.h>
    static int64_t torus_now_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    """
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int eventfd(unsigned int value, int flags)
    ssize_t read(int fd, void* data, size_t n)
    ssize_t write(int fd, const void* data, size_t n)
    int fdatasync(int fd)
    int64_t torus_now_ns()
    int EFD_CLOEXEC, EFD_NONBLOCK

cdef enum:
    RING = 256

cdef struct Job:
    int fd
    uint64_t token
    int error
    int64_t elapsed_ns


cdef class SyncThread:
    """Runs fdatasync on file descriptors, one after the other, in the order given."""

    cdef Job asked[RING]
    cdef Job answered[RING]
    cdef uint64_t asked_in, asked_out, answered_in, answered_out
    cdef pthread_mutex_t mutex
    cdef int wake_fd
    cdef bint ending
    cdef readonly int answer_fd
    cdef object thread

    def __cinit__(self):
        pthread_mutex_init(&self.mutex, NULL)
        self.wake_fd = eventfd(0, EFD_CLOEXEC)
        self.answer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.wake_fd < 0 or self.answer_fd < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.mutex)

    def start(self):
        """Start the thread."""
        self.thread = threading.Thread(target=self.work, name="fdatasync", daemon=True)
        self.thread.start()

    def submit(self, int fd, uint64_t token):
        """Ask for an fdatasync of ``fd``; False when too many are outstanding, or when closed."""
        pthread_mutex_lock(&self.mutex)
        cdef bint room = self.asked_in - self.answered_out < RING and not self.ending
        if room:
            self.asked[self.asked_in % RING].fd = fd
            self.asked[self.asked_in % RING].token = token
            self.asked_in += 1
        pthread_mutex_unlock(&self.mutex)
        if room:
            self.signal(self.wake_fd)
        return room

    def collect(self):
        """Return the finished ones as (token, errno or 0, nanoseconds); never waits."""
        cdef uint64_t count
        cdef const Job* job
        read(self.answer_fd, &count, sizeof(count))
        done = []
        pthread_mutex_lock(&self.mutex)
        while self.answered_out < self.answered_in:
            job = &self.answered[self.answered_out % RING]
            done.append((job.token, job.error, job.elapsed_ns))
            self.answered_out += 1
        pthread_mutex_unlock(&self.mutex)
        return done

    def close(self):
        """Let what was asked finish, end the thread, close the descriptors; idempotent."""
        if self.answer_fd < 0:
            return
        pthread_mutex_lock(&self.mutex)
        self.ending = True
        pthread_mutex_unlock(&self.mutex)
        self.signal(self.wake_fd)
        if self.thread is not None:
            self.thread.join()
        os.close(self.wake_fd)
        os.close(self.answer_fd)
        self.wake_fd = self.answer_fd = -1

    def work(self):
        """Serve until closed; the thread's body."""
        with nogil:
            self.serve()

    cdef void signal(self, int fd) noexcept nogil:
        cdef uint64_t one = 1
        while write(fd, &one, sizeof(one)) < 0 and errno == EINTR:
            pass

    cdef void serve(self) noexcept nogil:
        cdef uint64_t count
        cdef Job job
        cdef int64_t began
        cdef bint found, ending
        while True:
            pthread_mutex_lock(&self.mutex)
            found = self.asked_out < self.asked_in
            if found:
                job = self.asked[self.asked_out % RING]
                self.asked_out += 1
            ending = self.ending    # with the ring: what was asked before it is never left
            pthread_mutex_unlock(&self.mutex)
            if not found:
                if ending:
                    return
                read(self.wake_fd, &count, sizeof(count))
                continue
            began = torus_now_ns()
            job.error = 0
            while fdatasync(job.fd) < 0:
                job.error = errno
                if job.error != EINTR:
                    break
                job.error = 0
            job.elapsed_ns = torus_now_ns() - began
            pthread_mutex_lock(&self.mutex)
            self.answered[self.answered_in % RING] = job
            self.answered_in += 1
            pthread_mutex_unlock(&self.mutex)
            self.signal(self.answer_fd)

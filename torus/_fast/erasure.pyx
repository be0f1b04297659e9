"""The erasure code: K data shards and M parity shards, any K of which give all others.

Decides the bytes of every shard, and refuses shards that do not fit together.  Does not
decide how content is cut into shards (`torus.redundancy.stripe`).  The arithmetic is in
kernels/erasure_field.h and kernels/erasure_simd.h.

Implements docs/erasure-code.md.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport uint8_t
from libc.string cimport memset

cdef extern from "erasure_simd.h" nogil:
    enum:
        TORUS_ERASURE_DATA_MAX
        TORUS_ERASURE_PARITY_MAX
        TORUS_ERASURE_SHARDS_MAX
        TORUS_ERASURE_KERNELS
    ctypedef uint8_t torus_field_row[16]
    ctypedef struct torus_erasure_plan:
        unsigned int inputs
        unsigned int rows
    ctypedef struct torus_erasure_job:
        const torus_erasure_plan* plan
        unsigned int input
        unsigned int inputs
        int add
        const uint8_t** sources
        uint8_t** targets
        size_t size
    ctypedef struct torus_erasure_kernel:
        const char* name
        int usable
    torus_erasure_kernel* torus_erasure_kernels
    void torus_erasure_init()
    int torus_erasure_matrix(torus_field_row* matrix, int k, int m)
    void torus_erasure_prepare(
        torus_erasure_plan* plan, const torus_field_row* matrix, unsigned int k, unsigned int rows)
    void torus_erasure_run(const torus_erasure_kernel* kernel, const torus_erasure_job* job)
    int torus_erasure_solve(
        torus_field_row* sums, const torus_field_row* matrix, int k,
        const uint8_t* have, const uint8_t* wanted, int wanted_count)

# Fewer bytes of products than this take some microseconds: less than a thread's switch.
cdef size_t RELEASE_PRODUCTS = 128 * 1024

torus_erasure_init()


def kernels():
    cdef int i
    return tuple(
        (<bytes>torus_erasure_kernels[i].name).decode()
        for i in range(TORUS_ERASURE_KERNELS) if torus_erasure_kernels[i].usable
    )


def kernel_name():
    names = kernels()
    return names[len(names) - 1]


@cython.final
cdef class Buffers:
    """Buffers of equal size that are held while a call needs them."""

    cdef Py_buffer views[16]
    cdef uint8_t* starts[16]
    cdef int count
    cdef size_t size
    cdef object what
    cdef bint writable

    def __cinit__(self, what, bint writable):
        self.count = 0
        self.what = what
        self.writable = writable

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        while self.count:
            self.count -= 1
            PyBuffer_Release(&self.views[self.count])

    cdef int hold(self, object buffer) except -1:
        """Hold one more buffer."""
        cdef Py_buffer* view
        if self.count == TORUS_ERASURE_DATA_MAX:
            raise ValueError(f"more than {self.count} buffers are given as {self.what}")
        view = &self.views[self.count]
        try:
            PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE if self.writable else PyBUF_SIMPLE)
        except BufferError as error:
            wanted = "contiguous and writable" if self.writable else "contiguous"
            raise ValueError(
                f"{self.what} {self.count} cannot be used: expected it {wanted}: {error}"
            ) from None
        self.starts[self.count] = <uint8_t*>view.buf
        self.count += 1
        if self.count == 1:
            self.size = <size_t>view.len
        elif <size_t>view.len != self.size:
            raise ValueError(
                f"{self.what} {self.count - 1} has {view.len} bytes, "
                f"expected {self.size} as number 0 has"
            )
        return 0

    cdef int hold_all(self, object buffers, Py_ssize_t expected) except -1:
        """Hold so many buffers."""
        if len(buffers) != expected:
            raise ValueError(f"expected {expected} buffers as {self.what}, found {len(buffers)}")
        for buffer in buffers:
            self.hold(buffer)
        return 0


cdef inline bint overlap(uint8_t* a, size_t a_size, uint8_t* b, size_t b_size) noexcept:
    return a < b + b_size and b < a + a_size


cdef int refuse_overlap(Buffers sources, Buffers targets) except -1:
    """Raise unless every target lies apart from the sources and from the other targets."""
    cdef int i, j
    cdef uint8_t* start
    for i in range(targets.count):
        start = targets.starts[i]
        for j in range(sources.count):
            if overlap(start, targets.size, sources.starts[j], sources.size):
                raise ValueError(f"{targets.what} {i} overlaps {sources.what} {j}")
        for j in range(i):
            if overlap(start, targets.size, targets.starts[j], targets.size):
                raise ValueError(f"{targets.what} {i} overlaps {targets.what} {j}")
    return 0


@cython.final
cdef class Code:

    cdef readonly int data
    cdef readonly int parity
    cdef readonly int shards
    cdef torus_field_row rows[22]
    cdef torus_erasure_plan plan
    cdef const torus_erasure_kernel* chosen

    def __cinit__(self, int data, int parity, kernel=None):
        if not 2 <= data <= TORUS_ERASURE_DATA_MAX:
            raise ValueError(f"{data} data shards: expected 2 to {TORUS_ERASURE_DATA_MAX}")
        if not 1 <= parity <= TORUS_ERASURE_PARITY_MAX:
            raise ValueError(f"{parity} parity shards: expected 1 to {TORUS_ERASURE_PARITY_MAX}")
        self.data, self.parity, self.shards = data, parity, data + parity
        names = [
            (<bytes>torus_erasure_kernels[i].name).decode() for i in range(TORUS_ERASURE_KERNELS)
        ]
        wanted = kernel_name() if kernel is None else kernel
        if wanted not in kernels():
            raise ValueError(
                f"kernel {wanted!r} is not usable here: expected one of {', '.join(kernels())}"
            )
        self.chosen = &torus_erasure_kernels[<int>names.index(wanted)]
        if torus_erasure_matrix(self.rows, data, parity):
            raise AssertionError(f"the matrix of {data}+{parity} cannot be inverted")
        torus_erasure_prepare(&self.plan, &self.rows[data], data, parity)

    @property
    def kernel(self):
        return (<bytes>self.chosen.name).decode()

    def matrix(self):
        cdef int i
        return [(<uint8_t*>self.rows[i])[:self.data] for i in range(self.shards)]

    cdef void run(self, const torus_erasure_plan* plan, unsigned int first, unsigned int inputs,
                  uint8_t** sources, uint8_t** targets, size_t size, bint add) noexcept:
        """Fill the targets, without the interpreter's lock when it takes long."""
        cdef torus_erasure_job job
        job.plan, job.input, job.inputs, job.add = plan, first, inputs, add
        job.sources, job.targets, job.size = <const uint8_t**>sources, targets, size
        if size * inputs * plan.rows < RELEASE_PRODUCTS:
            torus_erasure_run(self.chosen, &job)
        else:
            with nogil:
                torus_erasure_run(self.chosen, &job)

    def encode(self, data, parity):
        sources, targets = Buffers("data shard", False), Buffers("parity shard", True)
        try:
            sources.hold_all(data, self.data)
            targets.hold_all(parity, self.parity)
            if sources.size != targets.size:
                raise ValueError(
                    f"a parity shard has {targets.size} bytes, "
                    f"expected {sources.size} as a data shard has"
                )
            refuse_overlap(sources, targets)
            self.run(&self.plan, 0, self.data, sources.starts, targets.starts, sources.size, False)
        finally:
            sources.release()
            targets.release()

    def encode_whole(self, content, parity, size_t shard_bytes):
        cdef Buffers source = Buffers("content", False)
        cdef Buffers target = Buffers("parity", True)
        cdef uint8_t* sources[16]
        cdef uint8_t* targets[6]
        cdef size_t whole, part
        cdef unsigned int used
        cdef int i
        try:
            source.hold(content)
            target.hold(parity)
            if shard_bytes > target.size or target.size != <size_t>self.parity * shard_bytes:
                raise ValueError(
                    f"the parity has {target.size} bytes, "
                    f"expected {self.parity} shards of {shard_bytes}"
                )
            if source.size > <size_t>self.data * shard_bytes:
                raise ValueError(
                    f"the content has {source.size} bytes, "
                    f"expected at most {self.data} shards of {shard_bytes}"
                )
            if not shard_bytes:
                return
            refuse_overlap(source, target)
            for i in range(self.parity):
                targets[i] = target.starts[0] + i * shard_bytes
            # Shards before number `whole` are full, that one has `part` bytes, others none.
            whole, part = source.size // shard_bytes, source.size % shard_bytes
            used = <unsigned int>(whole + (part > 0))
            for i in range(<int>used):
                sources[i] = source.starts[0] + i * shard_bytes
            self.run(&self.plan, 0, used, sources, targets, part or shard_bytes, False)
            if part and whole:
                for i in range(<int>whole):
                    sources[i] += part
                for i in range(self.parity):
                    targets[i] += part
                used = <unsigned int>whole
                self.run(&self.plan, 0, used, sources, targets, shard_bytes - part, False)
            elif part:
                for i in range(self.parity):
                    memset(targets[i] + part, 0, shard_bytes - part)
        finally:
            source.release()
            target.release()

    def add(self, Py_ssize_t index, piece, parity, Py_ssize_t offset):
        cdef Buffers source = Buffers("data piece", False)
        cdef Buffers targets = Buffers("parity shard", True)
        cdef uint8_t* starts[6]
        cdef int i
        if not 0 <= index < self.data:
            raise ValueError(f"shard {index} is no data shard: expected 0 to {self.data - 1}")
        try:
            source.hold(piece)
            targets.hold_all(parity, self.parity)
            if offset < 0 or <size_t>offset > targets.size or (
                    source.size > targets.size - <size_t>offset):
                raise ValueError(
                    f"{source.size} bytes at {offset} do not lie in a shard of {targets.size}"
                )
            refuse_overlap(source, targets)
            for i in range(self.parity):
                starts[i] = targets.starts[i] + offset
            self.run(&self.plan, <unsigned int>index, 1, source.starts, starts, source.size, True)
        finally:
            source.release()
            targets.release()

    def rebuild(self, numbers, present, wanted, outputs):
        cdef Buffers sources = Buffers("present shard", False)
        cdef Buffers targets = Buffers("wanted shard", True)
        cdef torus_erasure_plan plan
        having, wanting = list(numbers), list(wanted)
        self.check(having, wanting)
        try:
            sources.hold_all(present, self.data)
            targets.hold_all(outputs, len(wanting))
            if not wanting:
                return
            if sources.size != targets.size:
                raise ValueError(
                    f"a wanted shard has {targets.size} bytes, "
                    f"expected {sources.size} as a present one has"
                )
            refuse_overlap(sources, targets)
            self.solve(&plan, having, wanting)
            self.run(&plan, 0, self.data, sources.starts, targets.starts, sources.size, False)
        finally:
            sources.release()
            targets.release()

    cdef int check(self, list having, list wanting) except -1:
        """Raise unless the numbers are legal: distinct, in range, K present."""
        for number in having + wanting:
            if not isinstance(number, int) or not 0 <= number < self.shards:
                raise ValueError(
                    f"shard {number} does not exist: expected 0 to {self.shards - 1}"
                )
        if len(having) != self.data:
            raise ValueError(f"{len(having)} shards are given, expected {self.data}: {having}")
        if len({*having, *wanting}) != len(having) + len(wanting):
            raise ValueError(
                f"a shard is named twice: expected distinct ones, found present {having} "
                f"and wanted {wanting}"
            )
        return 0

    cdef int solve(self, torus_erasure_plan* plan, list having, list wanting) except -1:
        """Prepare the wanted shards as sums of the present ones."""
        cdef uint8_t have[16]
        cdef uint8_t wanted[6]
        cdef torus_field_row sums[6]
        cdef int i
        for i in range(self.data):
            have[i] = having[i]
        for i in range(len(wanting)):
            wanted[i] = wanting[i]
        if torus_erasure_solve(sums, self.rows, self.data, have, wanted, <int>len(wanting)):
            raise AssertionError(f"shards {having} do not give {wanting}")
        torus_erasure_prepare(plan, sums, self.data, len(wanting))
        return 0

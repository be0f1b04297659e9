"""Encodes and decodes the pages of the block map: leaves, directories, usage and the root.

Decides the bytes of docs/format-map.md and checks every one of them when reading.  Does not
know where pages lie, nor the tree that they make.  A page has no checksum of its own: the
reference to it carries one; only the root ends with its own.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memset

from torus._fast.bytes cimport (
    load_le16, load_le32, load_le64, store_le16, store_le32, store_le64
)
from torus._fast.crc cimport crc32c

from torus.errors import Corruption, UnknownVersion

cdef enum:
    MAGIC = 0x50414D54           # "TMAP"
    VERSION = 1
    HEADER_BYTES = 16
    ENTRY_BYTES = 12
    REF_BYTES = 16
    UNITS_BYTES = 2
    ERA_BYTES = 4
    ROOT_FIXED_BYTES = 40
    ROOT_REF_BYTES = 20          # index and reference
    LEVEL_LEAF = 0
    LEVEL_DIRECTORY = 1
    LEVEL_USAGE = 2
    LEVEL_ROOT = 3
    SIZE_BLOCKS_BITS = 34        # 64 TiB

LEVEL_NAMES = ("leaf", "directory", "usage", "root")


cdef void put_header(uint8_t* at, uint8_t level, uint16_t count, uint32_t index) noexcept:
    store_le32(at, MAGIC)
    at[4] = VERSION
    at[5] = level
    store_le16(at + 6, count)
    store_le32(at + 8, index)
    store_le32(at + 12, 0)


cdef object corrupt(int level, uint32_t index, str found):
    return Corruption(f"map {LEVEL_NAMES[level]} page {index}: {found}")


cdef int check_header(bytes page, uint8_t level, uint32_t index) except -1:
    """Return the count of the header."""
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(page)
    if PyBytes_GET_SIZE(page) < HEADER_BYTES:
        raise corrupt(level, index, f"{len(page)} bytes, expected at least {HEADER_BYTES}")
    if load_le32(at) != MAGIC:
        raise corrupt(level, index, f"magic {page[:4]!r}, expected b'TMAP'")
    if at[4] != VERSION:
        raise UnknownVersion(
            f"map {LEVEL_NAMES[level]} page {index} has version {at[4]}, expected {VERSION}",
            hint="use the torus release that wrote this volume, or a newer one",
        )
    if at[5] != level:
        raise corrupt(level, index, f"level {at[5]}, expected {level}")
    if load_le32(at + 8) != index:
        raise corrupt(level, index, f"it says that it is page {load_le32(at + 8)}")
    if load_le32(at + 12) != 0:
        raise corrupt(level, index, "reserved bytes are not zero")
    return load_le16(at + 6)


cdef int check_sparse(bytes page, uint8_t level, uint32_t index, int slots,
                      int item_bytes, bint more=False) except -1:
    """Check header, presence bitmap and length; return how many items are present.

    more: something that the caller checks may follow the items.
    """
    cdef int count = check_header(page, level, index), present = 0, i
    cdef const uint8_t* bitmap = <const uint8_t*>PyBytes_AS_STRING(page) + HEADER_BYTES
    cdef Py_ssize_t size = HEADER_BYTES + slots // 8 + <Py_ssize_t>count * item_bytes
    cdef Py_ssize_t excess = PyBytes_GET_SIZE(page) - size
    if not 1 <= count <= slots or excess < 0 or excess > 0 and not more:
        raise corrupt(level, index, f"{len(page)} bytes do not hold {count} items")
    for i in range(slots):
        present += bitmap[i >> 3] >> (i & 7) & 1
    if present != count:
        raise corrupt(level, index, f"count {count}, but {present} bits are set")
    return count


cdef bytes new_sparse(uint8_t level, uint32_t index, int slots, int item_bytes, int count,
                      int more_bytes=0):
    """A page with its header and an empty bitmap; the caller sets bits and items."""
    cdef Py_ssize_t size = HEADER_BYTES + slots // 8 + <Py_ssize_t>count * item_bytes + more_bytes
    cdef bytes page = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(page)
    put_header(at, level, count, index)
    memset(at + HEADER_BYTES, 0, slots // 8)
    return page


cdef bytes encode_leaf(uint32_t index, const Entry* entries):
    """Bytes of a leaf page; b"" when every entry is absent."""
    cdef int count = 0, i
    for i in range(LEAF_ENTRIES):
        count += entries[i].sequence != 0
    if count == 0:
        return b""
    cdef bytes page = new_sparse(LEVEL_LEAF, index, LEAF_ENTRIES, ENTRY_BYTES, count)
    cdef uint8_t* bitmap = <uint8_t*>PyBytes_AS_STRING(page) + HEADER_BYTES
    cdef uint8_t* at = bitmap + LEAF_ENTRIES // 8
    for i in range(LEAF_ENTRIES):
        if entries[i].sequence:
            bitmap[i >> 3] |= 1 << (i & 7)
            store_le32(at, entries[i].sequence)
            store_le16(at + 4, entries[i].offset)
            store_le16(at + 6, entries[i].base)
            store_le32(at + 8, entries[i].crc)
            at += ENTRY_BYTES
    return page


cdef int decode_leaf(bytes page, uint32_t index, Entry* out) except -1:
    cdef int count = check_sparse(page, LEVEL_LEAF, index, LEAF_ENTRIES, ENTRY_BYTES), i
    cdef const uint8_t* bitmap = <const uint8_t*>PyBytes_AS_STRING(page) + HEADER_BYTES
    cdef const uint8_t* at = bitmap + LEAF_ENTRIES // 8
    memset(out, 0, LEAF_ENTRIES * sizeof(Entry))
    for i in range(LEAF_ENTRIES):
        if bitmap[i >> 3] >> (i & 7) & 1:
            out[i].sequence = load_le32(at)
            out[i].offset = load_le16(at + 4)
            out[i].base = load_le16(at + 6)
            out[i].crc = load_le32(at + 8)
            if out[i].sequence == 0 or out[i].offset > CHUNK_UNITS - BLOCK_UNITS:
                raise corrupt(LEVEL_LEAF, index, f"entry {i} points to chunk "
                              f"{out[i].sequence}, unit {out[i].offset}")
            at += ENTRY_BYTES
    return count


cdef void store_ref(uint8_t* at, const PageRef* ref) noexcept:
    store_le32(at, ref.sequence)
    store_le16(at + 4, ref.offset)
    store_le16(at + 6, ref.base)
    store_le32(at + 8, ref.size_bytes)
    store_le32(at + 12, ref.crc)


cdef bint ref_is_sound(const PageRef* ref) noexcept:
    return (ref.sequence != 0 and 0 < ref.size_bytes <= PAGE_BYTES_MAX
            and ref.offset + units_of(ref.size_bytes) <= CHUNK_UNITS)


cdef bint load_ref(const uint8_t* at, PageRef* ref) noexcept:
    """Fill ref; False when it cannot be meant."""
    ref.sequence = load_le32(at)
    ref.offset = load_le16(at + 4)
    ref.base = load_le16(at + 6)
    ref.size_bytes = load_le32(at + 8)
    ref.crc = load_le32(at + 12)
    return ref_is_sound(ref)


cdef int set_ref(PageRef* ref, uint64_t sequence, uint64_t offset, uint64_t size_bytes,
                 uint64_t crc, uint64_t base=0) except -1:
    """Fill ref; size_bytes 0 means that there is no page.  Raises: ValueError."""
    memset(ref, 0, sizeof(PageRef))
    if size_bytes == 0:
        return 0
    if sequence >> 32 or offset >> 16 or size_bytes >> 32 or crc >> 32 or base >> 16:
        raise ValueError("a page reference's field is out of range")
    ref.sequence = <uint32_t>sequence
    ref.offset = <uint16_t>offset
    ref.base = <uint16_t>base
    ref.size_bytes = <uint32_t>size_bytes
    ref.crc = <uint32_t>crc
    if not ref_is_sound(ref):
        raise ValueError(f"a page of {size_bytes} bytes cannot lie in chunk {sequence} "
                         f"at unit {offset}")
    return 0


cdef bytes encode_refs(uint32_t index, const PageRef* refs):
    """Bytes of a directory page; b"" when no leaf of it is stored."""
    cdef int count = 0, i
    for i in range(DIRECTORY_LEAVES):
        count += refs[i].sequence != 0
    if count == 0:
        return b""
    cdef bytes page = new_sparse(LEVEL_DIRECTORY, index, DIRECTORY_LEAVES, REF_BYTES, count)
    cdef uint8_t* bitmap = <uint8_t*>PyBytes_AS_STRING(page) + HEADER_BYTES
    cdef uint8_t* at = bitmap + DIRECTORY_LEAVES // 8
    for i in range(DIRECTORY_LEAVES):
        if refs[i].sequence:
            bitmap[i >> 3] |= 1 << (i & 7)
            store_ref(at, &refs[i])
            at += REF_BYTES
    return page


cdef int decode_refs(bytes page, uint32_t index, PageRef* out) except -1:
    cdef int count = check_sparse(page, LEVEL_DIRECTORY, index, DIRECTORY_LEAVES, REF_BYTES), i
    cdef const uint8_t* bitmap = <const uint8_t*>PyBytes_AS_STRING(page) + HEADER_BYTES
    cdef const uint8_t* at = bitmap + DIRECTORY_LEAVES // 8
    memset(out, 0, DIRECTORY_LEAVES * sizeof(PageRef))
    for i in range(DIRECTORY_LEAVES):
        if bitmap[i >> 3] >> (i & 7) & 1:
            if not load_ref(at, &out[i]):
                raise corrupt(LEVEL_DIRECTORY, index, f"reference {i} is out of range")
            at += REF_BYTES
    return count


cdef int shift_refs(uint32_t index, PageRef* refs, uint16_t base) except -1:
    cdef int i
    for i in range(DIRECTORY_LEAVES):
        if refs[i].sequence:
            if refs[i].base + <uint32_t>base >= MEMBERS:
                raise corrupt(LEVEL_DIRECTORY, index, f"reference {i} of member {base} names "
                              f"its member {refs[i].base}, beyond the longest family")
            refs[i].base += base
    return 0


cdef int shift_entries(uint32_t index, Entry* entries, uint16_t base) except -1:
    cdef int i
    for i in range(LEAF_ENTRIES):
        if entries[i].sequence:
            if entries[i].base + <uint32_t>base >= MEMBERS:
                raise corrupt(LEVEL_LEAF, index, f"entry {i} of member {base} names its member "
                              f"{entries[i].base}, beyond the longest family")
            entries[i].base += base
    return 0


cdef list shift_root_refs(list refs, uint64_t base):
    shifted = []
    for index, sequence, offset, size_bytes, crc, own in refs:
        if own + base >= MEMBERS:
            raise corrupt(LEVEL_ROOT, 0, f"the directory {index} of member {base} names its "
                          f"member {own}, beyond the longest family")
        shifted.append((index, sequence, offset, size_bytes, crc, own + base))
    return shifted


cdef bytes encode_usage(uint32_t index, const UsageTable* table):
    """Bytes of a usage page; b"" when every sequence is GONE."""
    cdef int count = 0, empty = 0, i
    for i in range(PAGE_SEQUENCES):
        count += table.units[i] != GONE
        empty += table.units[i] == 0
    if count == 0:
        return b""
    cdef bytes page = new_sparse(LEVEL_USAGE, index, PAGE_SEQUENCES, UNITS_BYTES, count,
                                 empty * ERA_BYTES)
    cdef uint8_t* bitmap = <uint8_t*>PyBytes_AS_STRING(page) + HEADER_BYTES
    cdef uint8_t* at = bitmap + PAGE_SEQUENCES // 8
    cdef uint8_t* era_at = at + count * UNITS_BYTES
    for i in range(PAGE_SEQUENCES):
        if table.units[i] != GONE:
            bitmap[i >> 3] |= 1 << (i & 7)
            store_le16(at, table.units[i])
            at += UNITS_BYTES
        if table.units[i] == 0:
            store_le32(era_at, table.eras[i])
            era_at += ERA_BYTES
    return page


cdef int decode_usage(bytes page, uint32_t index, UsageTable* out) except -1:
    cdef int count = check_sparse(page, LEVEL_USAGE, index, PAGE_SEQUENCES, UNITS_BYTES, True)
    cdef const uint8_t* bitmap = <const uint8_t*>PyBytes_AS_STRING(page) + HEADER_BYTES
    cdef const uint8_t* at = bitmap + PAGE_SEQUENCES // 8
    cdef const uint8_t* era_at = at + count * UNITS_BYTES
    cdef const uint8_t* end = <const uint8_t*>PyBytes_AS_STRING(page) + PyBytes_GET_SIZE(page)
    cdef int i
    memset(out.units, 0xFF, sizeof(out.units))
    memset(out.eras, 0, sizeof(out.eras))
    for i in range(PAGE_SEQUENCES):
        if bitmap[i >> 3] >> (i & 7) & 1:
            out.units[i] = load_le16(at)
            if out.units[i] > CHUNK_UNITS:
                raise corrupt(LEVEL_USAGE, index, f"sequence {i} has {out.units[i]} live units")
            at += UNITS_BYTES
        if out.units[i] == 0:
            if end - era_at < ERA_BYTES:
                raise corrupt(LEVEL_USAGE, index, "it ends within the eras of empty chunks")
            out.eras[i] = load_le32(era_at)
            era_at += ERA_BYTES
    if era_at != end:
        raise corrupt(LEVEL_USAGE, index, f"{end - era_at} bytes follow the eras")
    if index == 0 and out.units[0] != GONE:
        raise corrupt(LEVEL_USAGE, index, "sequence 0 is in use")
    return count


cdef bytes encode_root(uint64_t size_blocks, uint64_t mapped_blocks, list directories,
                       list usage):
    """Bytes of the root; both lists hold (index, sequence, offset, size_bytes, crc, base)."""
    cdef Py_ssize_t size = ROOT_FIXED_BYTES + 4
    size += ROOT_REF_BYTES * (len(directories) + len(usage))
    cdef bytes page = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* start = <uint8_t*>PyBytes_AS_STRING(page)
    cdef uint8_t* at = start + ROOT_FIXED_BYTES
    cdef PageRef ref
    put_header(start, LEVEL_ROOT, 0, 0)
    store_le64(start + 16, size_blocks)
    store_le64(start + 24, mapped_blocks)
    store_le32(start + 32, <uint32_t>len(directories))
    store_le32(start + 36, <uint32_t>len(usage))
    for refs in (directories, usage):
        for index, sequence, offset, size_bytes, crc, base in sorted(refs):
            set_ref(&ref, sequence, offset, size_bytes, crc, base)
            store_le32(at, index)
            store_ref(at + 4, &ref)
            at += ROOT_REF_BYTES
    store_le32(at, crc32c(0, start, <size_t>(size - 4)))
    return page


cdef list decode_root_refs(const uint8_t* at, uint32_t count, uint64_t index_end,
                           uint32_t members):
    cdef uint64_t least = 0
    cdef uint32_t i, index
    cdef PageRef ref
    cdef list refs = []
    for i in range(count):
        index = load_le32(at)
        if not least <= index < index_end or not load_ref(at + 4, &ref):
            raise corrupt(LEVEL_ROOT, 0, f"reference {i} to page {index} is out of range")
        if ref.base >= members:
            raise corrupt(LEVEL_ROOT, 0, f"the usage page {index} lies in the log of another "
                          f"volume, {ref.base}")
        refs.append((index, ref.sequence, ref.offset, ref.size_bytes, ref.crc, ref.base))
        least = <uint64_t>index + 1
        at += ROOT_REF_BYTES
    return refs


cdef tuple decode_root(bytes page):
    """(size_blocks, mapped_blocks, directories, usage), the lists as in encode_root."""
    check_header(page, LEVEL_ROOT, 0)
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(page)
    cdef size_t size = <size_t>PyBytes_GET_SIZE(page)
    if size < ROOT_FIXED_BYTES + 4 or load_le32(at + size - 4) != crc32c(0, at, size - 4):
        raise corrupt(LEVEL_ROOT, 0, f"the checksum of its {size} bytes does not match")
    cdef uint64_t size_blocks = load_le64(at + 16), mapped_blocks = load_le64(at + 24)
    cdef uint32_t directories = load_le32(at + 32), usage = load_le32(at + 36)
    cdef uint64_t expected = ROOT_FIXED_BYTES + 4
    expected += ROOT_REF_BYTES * (<uint64_t>directories + usage)
    if load_le16(at + 6) != 0 or size != expected:
        raise corrupt(LEVEL_ROOT, 0, f"{size} bytes do not hold {directories}+{usage} references")
    if not 0 < size_blocks <= <uint64_t>1 << SIZE_BLOCKS_BITS or mapped_blocks > size_blocks:
        raise corrupt(LEVEL_ROOT, 0, f"{mapped_blocks} of {size_blocks} blocks are mapped")
    at += ROOT_FIXED_BYTES
    return (
        size_blocks,
        mapped_blocks,
        decode_root_refs(at, directories, (size_blocks + (1 << 20) - 1) >> 20, MEMBERS),
        decode_root_refs(at + <size_t>directories * ROOT_REF_BYTES, usage, 1 << 20, 1),
    )


def read_leaf(bytes page, uint32_t index):
    cdef Entry entries[LEAF_ENTRIES]
    decode_leaf(page, index, entries)
    return [(i, entries[i].sequence, entries[i].offset, entries[i].base, entries[i].crc)
            for i in range(LEAF_ENTRIES) if entries[i].sequence]


def read_directory(bytes page, uint32_t index):
    cdef PageRef refs[DIRECTORY_LEAVES]
    decode_refs(page, index, refs)
    return [(i, refs[i].sequence, refs[i].offset, refs[i].size_bytes, refs[i].crc,
             refs[i].base)
            for i in range(DIRECTORY_LEAVES) if refs[i].sequence]


def read_usage(bytes page, uint32_t index):
    cdef UsageTable table
    decode_usage(page, index, &table)
    return [(i, table.units[i], table.eras[i])
            for i in range(PAGE_SEQUENCES) if table.units[i] != GONE]


def read_root(bytes page):
    return decode_root(page)

"""Changes the table of a ring slot by slot: fills what is missing, evens out what is uneven.

Decides which member a slot gets: of those that have too little and that the rule of zones and
nodes allows, the one with the least cost.  Does not decide how much a member should have nor in
which order columns are worked on: that is `torus.ring.builder`'s.

Loads count by prefixes: load `c` of a member is the number of slots that name it in columns
0 to `c`, because volumes with `c + 1` copies use just these.  A touched slot is left alone.

Implements docs/ring.md, "Building".
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

from torus._fast.ring cimport COLUMNS_MAX, NOBODY, Layout, begin, cost, mix, mix_slot

begin()

cdef enum:
    FIRST_CHOICES = 16      # of each slot, kept: nine of ten fillings look no further
    LARGE_PART = 16         # of the slots: a zone that needs less finds places enough


cdef int compare(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const uint64_t*>a)[0], y = (<const uint64_t*>b)[0]
    return (x > y) - (x < y)


cdef class Workbench:
    cdef Layout layout
    cdef int columns
    cdef readonly int width
    cdef uint64_t slots
    cdef uint16_t* table
    cdef uint32_t* sequence                     # the slots in the order of this version
    cdef int32_t* loads                         # [column][member]
    cdef int32_t* targets
    cdef int32_t* bounds
    cdef int32_t* wants
    cdef int32_t* gives
    cdef int32_t* demand                        # of a zone: places it should have in a column
    cdef int32_t* chances                       # ... and open ones that the rule lets it have
    cdef uint16_t* choices                      # [slot][FIRST_CHOICES]
    cdef int zones_above[COLUMNS_MAX + 1]       # how many zones have more nodes than that

    def __cinit__(self, Layout layout not None, const uint8_t[::1] table not None, int columns,
                  uint64_t seed):
        cdef uint64_t i, n = layout.count
        cdef int zone, at, nodes = 0
        if not 0 < columns <= COLUMNS_MAX or not len(table) or len(table) % (2 * columns):
            raise ValueError(f"a table of {len(table)} bytes has no {columns} columns")
        self.layout, self.columns = layout, columns
        self.slots = len(table) // (2 * columns)
        self.table = <uint16_t*>PyMem_Malloc(len(table))
        self.sequence = <uint32_t*>PyMem_Malloc(self.slots * sizeof(uint32_t))
        self.loads = <int32_t*>PyMem_Calloc(columns * n, sizeof(int32_t))
        self.targets = <int32_t*>PyMem_Calloc(columns * n, sizeof(int32_t))
        self.bounds = <int32_t*>PyMem_Calloc(columns * n, sizeof(int32_t))
        self.wants = <int32_t*>PyMem_Calloc(n, sizeof(int32_t))
        self.gives = <int32_t*>PyMem_Calloc(n, sizeof(int32_t))
        self.demand = <int32_t*>PyMem_Calloc(n, sizeof(int32_t))
        self.chances = <int32_t*>PyMem_Calloc(n, sizeof(int32_t))
        self.choices = <uint16_t*>PyMem_Malloc(self.slots * FIRST_CHOICES * sizeof(uint16_t))
        if (self.table is NULL or self.sequence is NULL or self.loads is NULL
                or self.targets is NULL or self.bounds is NULL or self.wants is NULL
                or self.gives is NULL or self.demand is NULL or self.chances is NULL
                or self.choices is NULL):
            raise MemoryError()
        memcpy(self.table, &table[0], len(table))
        for i in range(self.slots * <uint64_t>columns):
            if self.table[i] != NOBODY and self.table[i] >= n:
                raise ValueError(f"the table names member {self.table[i]} of {n}")
        for i in range(self.slots):
            self.choices[i * FIRST_CHOICES] = NOBODY
            self.count_row(i, 1)
        for zone in range(layout.zone_count):
            nodes += layout.zone_nodes[zone]
            for at in range(columns + 1):
                self.zones_above[at] += layout.zone_nodes[zone] > at
        self.width = min(columns, nodes)
        self.shuffle(seed)

    def __dealloc__(self):
        PyMem_Free(self.table)
        PyMem_Free(self.sequence)
        PyMem_Free(self.loads)
        PyMem_Free(self.targets)
        PyMem_Free(self.bounds)
        PyMem_Free(self.wants)
        PyMem_Free(self.gives)
        PyMem_Free(self.demand)
        PyMem_Free(self.chances)
        PyMem_Free(self.choices)

    cdef int shuffle(self, uint64_t seed) except -1:
        """Order the slots by a hash of seed and number: each version begins elsewhere."""
        cdef uint64_t i
        cdef uint64_t* keys = <uint64_t*>PyMem_Malloc(self.slots * sizeof(uint64_t))
        if keys is NULL:
            raise MemoryError()
        for i in range(self.slots):
            keys[i] = (mix(mix_slot(i) ^ mix(seed)) & ~<uint64_t>0xFFFFFF) | i
        qsort(keys, self.slots, sizeof(uint64_t), compare)
        for i in range(self.slots):
            self.sequence[i] = keys[i] & 0xFFFFFF
        PyMem_Free(keys)
        return 0

    cdef inline uint16_t* row_of(self, uint64_t slot) noexcept:
        return &self.table[slot * <uint64_t>self.columns]

    cdef inline bint is_open(self, uint16_t member) noexcept:
        """Nobody, or a member that is to leave."""
        return member == NOBODY or not self.layout.shares[member]

    cdef void count_row(self, uint64_t slot, int sign) noexcept:
        cdef uint16_t* row = self.row_of(slot)
        cdef int c, below
        for c in range(self.columns):
            if row[c] != NOBODY:
                for below in range(c, self.columns):
                    self.loads[below * self.layout.count + row[c]] += sign

    cdef bint fits(self, const uint16_t* row) noexcept:
        """Whether the row keeps the rule, whatever its open places will hold."""
        cdef int p, q, level = 0, left = self.zones_above[0], used, open_before = 0
        for p in range(self.width):
            if self.is_open(row[p]):
                open_before += 1
            else:
                used = 0
                for q in range(p):
                    if self.is_open(row[q]):
                        continue
                    if self.layout.nodes[row[q]] == self.layout.nodes[row[p]]:
                        return False
                    used += self.layout.zones[row[q]] == self.layout.zones[row[p]]
                if used > level or (used < level and not open_before):
                    return False
            left -= 1
            if not left:
                level += 1
                left = self.zones_above[level]
        return True

    cdef bint is_right(self, const uint16_t* row) noexcept:
        """Whether the row keeps the rule and has nobody only where nobody can be."""
        cdef int c
        for c in range(self.columns):
            if (self.is_open(row[c]) if c < self.width else row[c] != NOBODY):
                return False
        return self.fits(row)

    cdef void choose_first(self, uint64_t slot) noexcept:
        """Find the members with the least costs for a slot, in order."""
        cdef uint64_t costs[FIRST_CHOICES]
        cdef uint64_t slot_mix = mix_slot(slot), this
        cdef uint16_t* choices = &self.choices[slot * FIRST_CHOICES]
        cdef int i, at, have = 0
        for i in range(self.layout.count):
            if not self.layout.shares[i]:
                continue
            this = cost(slot_mix, self.layout.keys[i], self.layout.shares[i])
            if have == FIRST_CHOICES and this >= costs[have - 1]:
                continue
            have += have < FIRST_CHOICES
            at = have - 1
            while at and costs[at - 1] > this:
                costs[at], choices[at] = costs[at - 1], choices[at - 1]
                at -= 1
            costs[at], choices[at] = this, i
        if have < FIRST_CHOICES:
            choices[have] = NOBODY

    cdef bint may_fill(self, const uint16_t* row, int column, uint16_t member) noexcept:
        """Whether a place may be filled so; a later place of that member falls open."""
        cdef uint16_t new[COLUMNS_MAX]
        cdef int p
        for p in range(self.columns):
            new[p] = row[p]
            if row[p] == member:
                if p < column:
                    return False
                new[p] = NOBODY
        new[column] = member
        return self.fits(new)

    cdef bint lacks(self, const uint16_t* row, int column, int zone) noexcept:
        """Whether a zone is not used more often than others in the places before `column`."""
        cdef int p, q, used, mine = 0
        for p in range(column):
            mine += not self.is_open(row[p]) and self.layout.zones[row[p]] == zone
        # it may come again when all others that have nodes left have come as often
        used, q = 0, column
        for p in range(COLUMNS_MAX):
            if q < self.zones_above[p] or not self.zones_above[p]:
                break
            q -= self.zones_above[p]
            used += 1
        return mine <= used and self.layout.zone_nodes[zone] > mine

    cdef void count_chances(self, int column) noexcept:
        """Count for each zone what it should have more in a column, and where it may."""
        cdef uint64_t slot
        cdef int zone, i
        cdef uint16_t* row
        cdef int at = column * self.layout.count
        memset(self.demand, 0, self.layout.count * sizeof(int32_t))
        memset(self.chances, 0, self.layout.count * sizeof(int32_t))
        for i in range(self.layout.count):
            if self.layout.shares[i] and self.targets[at + i] > self.loads[at + i]:
                self.demand[self.layout.zones[i]] += self.targets[at + i] - self.loads[at + i]
        for zone in range(self.layout.zone_count):
            if <uint64_t>self.demand[zone] * LARGE_PART < self.slots:
                self.demand[zone] = 0       # a small one finds places enough
                continue
            for slot in range(self.slots):
                row = self.row_of(slot)
                if self.is_open(row[column]):
                    self.chances[zone] += self.lacks(row, column, zone)

    cdef int urgent_zone(self, const uint16_t* row, int column) noexcept:
        """The zone that needs every chance that is left, this one too; -1: none does.

        Takes this chance from all.
        """
        cdef int zone, found = -1, spare, least = 0
        for zone in range(self.layout.zone_count):
            if self.demand[zone] > 0 and self.lacks(row, column, zone):
                spare = self.chances[zone] - self.demand[zone]
                if spare <= 0 and (found < 0 or spare < least):
                    found, least = zone, spare
                self.chances[zone] -= 1
        return found

    cdef int find_filling(self, uint64_t slot, int column, int zone) noexcept:
        """The member for an open place, of that zone unless it is -1; -1 when none is allowed."""
        cdef uint16_t* row = self.row_of(slot)
        cdef uint16_t* choices = &self.choices[slot * FIRST_CHOICES]
        cdef uint64_t slot_mix = mix_slot(slot), this, least = 0
        cdef int32_t* loads = &self.loads[column * self.layout.count]
        cdef int32_t* targets = &self.targets[column * self.layout.count]
        cdef int32_t* bounds = &self.bounds[column * self.layout.count]
        cdef int i, found = -1, over, least_over = 0
        if choices[0] == NOBODY:
            self.choose_first(slot)
        for i in range(FIRST_CHOICES):
            if choices[i] == NOBODY:
                break
            if (loads[choices[i]] < targets[choices[i]]
                    and (zone < 0 or self.layout.zones[choices[i]] == zone)
                    and self.may_fill(row, column, choices[i])):
                return choices[i]
        for i in range(self.layout.count):  # who has too little, else who has least too much
            if not self.layout.shares[i] or (zone >= 0 and self.layout.zones[i] != zone):
                continue
            over = 0 if loads[i] < targets[i] else 1 + max(0, loads[i] - bounds[i] + 1)
            if found >= 0 and over > least_over:
                continue
            this = cost(slot_mix, self.layout.keys[i], self.layout.shares[i])
            if ((found < 0 or over < least_over or this < least)
                    and self.may_fill(row, column, i)):
                found, least, least_over = i, this, over
        return found

    def fill(self, targets, bounds):
        """Fill all places whose member is nobody or has no weight.

        Targets and bounds are [column][member].  Returns the slots that could not be brought to
        the rule.
        """
        cdef uint64_t k, slot
        cdef int c, p, i, found, zone
        cdef uint16_t* row
        for c in range(self.columns):
            for i in range(self.layout.count):
                self.targets[c * self.layout.count + i] = targets[c][i]
                self.bounds[c * self.layout.count + i] = bounds[c][i]
        for c in range(self.width):
            self.count_chances(c)
            for k in range(self.slots):
                slot = self.sequence[k]
                row = self.row_of(slot)
                if not self.is_open(row[c]):
                    continue
                zone = self.urgent_zone(row, c)
                found = self.find_filling(slot, c, zone)
                if found < 0 and zone >= 0:
                    found = self.find_filling(slot, c, -1)
                if found >= 0:
                    self.demand[self.layout.zones[found]] -= 1
                    self.count_row(slot, -1)
                    for p in range(c + 1, self.columns):
                        if row[p] == found:
                            row[p] = NOBODY
                    row[c] = found
                    self.count_row(slot, 1)
        failed = []
        for slot in range(self.slots):
            row = self.row_of(slot)
            if not self.is_right(row):
                failed.append(slot)
        return failed

    cdef bint try_move(self, uint64_t slot, int column, uint16_t member, uint16_t* new) noexcept:
        """Make the row with `member` in that column, one member less; False: not allowed.

        Who had the place goes to a later one whose member then leaves, if the rule asks for it.
        """
        cdef uint16_t* row = self.row_of(slot)
        cdef int p
        memcpy(new, row, self.columns * sizeof(uint16_t))
        for p in range(self.columns):
            if row[p] == member:
                if p < column:
                    return False
                new[p] = row[column]
        new[column] = member
        if self.fits(new):
            return True
        for p in range(column + 1, self.width):
            if row[p] == member:
                return False
        for p in range(column + 1, self.width):
            new[p] = row[column]
            if self.fits(new):
                return True
            new[p] = row[p]
        return False

    def even(self, int column, wants, gives):
        """Let members that give too much lose slots of a column to those that want some.

        Returns how many slots moved.
        """
        cdef uint16_t best_row[COLUMNS_MAX]
        cdef uint16_t new[COLUMNS_MAX]
        cdef uint64_t k, slot, this, least, slot_mix
        cdef int i, best, moved = 0, taker_count = 0
        cdef uint16_t* row
        takers = [i for i in range(self.layout.count) if wants[i] > 0]
        for i in range(self.layout.count):
            self.wants[i], self.gives[i] = wants[i], gives[i]
        cdef uint16_t* taker = <uint16_t*>PyMem_Malloc((len(takers) + 1) * sizeof(uint16_t))
        if taker is NULL:
            raise MemoryError()
        for i in takers:
            taker[taker_count] = i
            taker_count += 1
        for k in range(self.slots):
            slot = self.sequence[k]
            row = self.row_of(slot)
            if row[column] == NOBODY or self.gives[row[column]] <= 0 or not taker_count:
                continue
            if not self.is_right(row):
                continue
            best, least, slot_mix = -1, 0, mix_slot(slot)
            for i in range(taker_count):
                this = cost(slot_mix, self.layout.keys[taker[i]], self.layout.shares[taker[i]])
                if ((best < 0 or this < least)
                        and self.try_move(slot, column, taker[i], new)):
                    best, least = i, this
                    memcpy(best_row, new, sizeof(new))
            if best < 0:
                continue
            self.count_row(slot, -1)
            self.gives[row[column]] -= 1
            memcpy(row, best_row, self.columns * sizeof(uint16_t))
            self.count_row(slot, 1)
            moved += 1
            self.wants[taker[best]] -= 1
            if not self.wants[taker[best]]:
                taker_count -= 1
                taker[best] = taker[taker_count]
        PyMem_Free(taker)
        return moved

    def column_loads(self, int column):
        """How many slots name each member in columns 0 to `column`."""
        cdef int i
        if not 0 <= column < self.columns:
            raise ValueError(f"there is no column {column}")
        return [self.loads[column * self.layout.count + i] for i in range(self.layout.count)]

    def chosen_row(self, uint64_t slot):
        """The row that the rule makes of a slot's members, and of the best others."""
        cdef uint16_t base[COLUMNS_MAX]
        cdef uint16_t picked[COLUMNS_MAX]
        cdef int c, found
        if slot >= self.slots:
            raise ValueError(f"there is no slot {slot}")
        for c in range(self.columns):
            base[c] = self.row_of(slot)[c]
            if self.is_open(base[c]):
                base[c] = NOBODY
        found = self.layout.pick(base, self.columns, 0, slot, NULL, self.width, picked)
        return [picked[c] for c in range(found)] + [NOBODY] * (self.columns - found)

    cdef int read_row(self, row, uint16_t* cells) except -1:
        cdef int c
        if len(row) != self.columns:
            raise ValueError(f"a row of {len(row)} members is not possible")
        for c in range(self.columns):
            cells[c] = row[c] if row[c] < self.layout.count else NOBODY
        return 0

    def allows(self, row):
        """Say whether a row keeps the rule and is complete."""
        cdef uint16_t cells[COLUMNS_MAX]
        self.read_row(row, cells)
        return self.is_right(cells)

    def allows_open(self, row):
        """Say whether a row keeps the rule where its members stay."""
        cdef uint16_t cells[COLUMNS_MAX]
        self.read_row(row, cells)
        return self.fits(cells)

    def set_row(self, uint64_t slot, row):
        """Replace a slot's row."""
        cdef uint16_t cells[COLUMNS_MAX]
        if slot >= self.slots:
            raise ValueError(f"there is no slot {slot}")
        self.read_row(row, cells)
        self.count_row(slot, -1)
        memcpy(self.row_of(slot), cells, self.columns * sizeof(uint16_t))
        self.count_row(slot, 1)

    def table_bytes(self):
        """The table as it is now."""
        return (<const char*>self.table)[:self.slots * <uint64_t>self.columns * 2]

    def restore(self, const uint8_t[::1] table not None):
        """Go back to a table that this bench had."""
        cdef uint64_t slot
        if <uint64_t>len(table) != self.slots * <uint64_t>self.columns * 2:
            raise ValueError("this is another bench's table")
        memcpy(self.table, &table[0], len(table))
        memset(self.loads, 0, self.columns * self.layout.count * sizeof(int32_t))
        for slot in range(self.slots):
            self.count_row(slot, 1)

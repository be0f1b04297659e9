"""Every bound of torus, with its unit in its name, and how they depend on each other."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

# --- the block device -------------------------------------------------------------------
SECTOR_BYTES = 512
BLOCK_BYTES = 4 * KIB  # granularity of the map and of every checksum
VOLUME_BYTES_MIN = 4 * KIB
VOLUME_BYTES_MAX = 64 * TIB

# --- the disk ---------------------------------------------------------------------------
SLOT_BYTES = 4 * MIB
SEGMENT_SLOTS = 64
SEGMENT_HEADER_BYTES = 4 * KIB
SLOT_HEADER_BYTES = 512
STORE_BYTES_MIN = 64 * MIB
RESERVE_SLOTS_MIN = 4  # kept for checkpoints and collection when the pool is full
RESERVE_PERCENT = 3
SPARE_SLOTS_MIN = 16  # free slots below which the next segment is preallocated ahead

# --- redundancy -------------------------------------------------------------------------
COPIES_MAX = 8
ERASURE_DATA_MIN = 2  # K of erasure:K+M
ERASURE_DATA_MAX = 16
ERASURE_PARITY_MIN = 1  # M of erasure:K+M
ERASURE_PARITY_MAX = 6
SHELF_HEADER_BYTES = 4 * KIB  # of a slot that is cut into cells, before the first
CELL_HEADER_BYTES = 4 * KIB  # of a cell: what is behind it is a shard's
CHUNK_DATA_MAX = 12  # data shards that every chunk of a cluster can be cut into; more hold less
CHUNK_BYTES_MAX = SLOT_HEADER_BYTES + min(  # what the shards of all these schemes have room for
    data * ((SLOT_BYTES - SHELF_HEADER_BYTES) // data // BLOCK_BYTES * BLOCK_BYTES)
    - data * CELL_HEADER_BYTES
    for data in range(ERASURE_DATA_MIN, CHUNK_DATA_MAX + 1)
)

# --- records ----------------------------------------------------------------------------
RECORD_ALIGN_BYTES = 512
RECORD_PAYLOAD_BYTES_MAX = 1 * MIB + 64 * KIB
RECORD_EXTENTS_MAX = 256

# --- the map ----------------------------------------------------------------------------
LEAF_ENTRIES = 1024
MAP_CACHE_BYTES_DEFAULT = 256 * MIB
EARLY_FLUSH_BYTES = 64 * MIB  # the writer flushes by itself when so much is not on disk
EARLY_FLUSH_S = 1.0  # and what was written so long ago
CHECKPOINT_LOG_BYTES = 1 * GIB
CHECKPOINT_INTERVAL_S = 60.0
CHECKPOINT_QUIET_S = 5.0  # without writes, before one is written for chunks that become shards
CHECKPOINT_QUIET_BYTES = 16 * MIB  # of log since the last one, so that there are such chunks

# --- attached volumes -------------------------------------------------------------------
SNAPSHOTS_OPEN_MAX = 256  # in one process, for clients and for comparing
DETACH_WAIT_S = 5.0  # what waits for disks or metadata when a volume is closed is given up then
DETACH_LINGER_S = 5.0  # a volume without clients stays attached that long
TRASH_GRACE_S = 30.0  # a deleted chunk can be taken back so long, unless its slot is needed
TRASH_FREE_PERCENT = 5  # free slots below which the oldest trash goes at once
TRASH_SLOTS_MAX = 64  # more goes at once: overwriting needs its warm slots back
TRASH_RETRY_S = 5.0  # after the trash could not be emptied
ORPHAN_FIRST_S = 30.0  # after a node started: clients first
ORPHAN_INTERVAL_S = 3600.0  # a chunk goes when it was nobody's in two rounds so far apart
PUNCH_DELAY_S = 300.0  # a freed slot that is reused sooner keeps its blocks and its page cache
DELETE_DELAY_S = 1.0  # a chunk that a checkpoint no longer needs is kept that long after it
CLONE_DEPTH_MAX = 64  # clones of clones
WATCH_RETRY_S = 1.0
COPY_PIECE_BYTES = 1 * MIB  # import and export move this much at a time
COPY_IN_FLIGHT = 4
BACKUP_FRAME_BYTES_MAX = 1 * MIB  # data in one frame of a backup stream
BACKUP_HEADER_BYTES_MAX = 64 * KIB  # of a backup stream
THREAD_SWITCH_S = 0.0005
POOL_THREADS = 6  # blocking disk calls at once

# --- garbage collection -----------------------------------------------------------------
GC_TARGET_PERCENT = 70  # the live part of a log that collection keeps up
GC_WORTH_PERCENT = 95  # a chunk that is fuller is not worth a copy
GC_ROUND_CHUNKS = 64  # emptied at once in the background; 'torus gc' takes more
GC_ROUND_CHUNKS_MAX = 4096
GC_DEAD_CHUNKS_MAX = 256  # emptied chunks that wait for a checkpoint before one is asked for
GC_CHECKPOINT_LOG_BYTES = 512 * MIB  # of log since the last checkpoint before it asks for one
GC_RATE_BYTES_DEFAULT = 64 * MIB  # per second
GC_STEP_BYTES = 256 * KIB  # written between two looks at what clients want
GC_LOOK_BYTES = 64 * MIB  # of log between two looks at the volume's utilisation
GC_SLOW_US = 5_000  # a step that waits longer for its turn says that clients are slow
GC_SHORT_PERCENT = 10  # free slots of the pool below which collection does not hold back

# --- NBD --------------------------------------------------------------------------------
NBD_REQUEST_BYTES_MAX = 32 * MIB
NBD_OPTION_BYTES_MAX = 64 * KIB
NBD_NAME_BYTES_MAX = 4096
NBD_HANDSHAKE_TIMEOUT_S = 30.0
NBD_CONTEXTS_MAX = 16  # metadata contexts that one connection may select
NBD_LISTED_SNAPSHOTS_MAX = 10_000  # shown by LIST beside the volumes
NBD_CONNECTIONS_MAX = 1024
NBD_IN_FLIGHT_BYTES_MAX = 64 * MIB  # per connection: replies not yet sent and payloads held
NBD_IN_FLIGHT_REQUESTS_MAX = 1024
NBD_SLICE_BYTES = 1 * MIB  # of replies handed to the transport at a time
NBD_AWAY_S = 15.0  # who was away so long when a request gave up is waited for, again and again
NBD_TURN_BYTES = 4 * MIB  # served before other connections get their turn
NBD_UNSENT_BYTES_HIGH = 8 * MIB
NBD_UNSENT_BYTES_LOW = 1 * MIB
NBD_POLL_NS = 150_000  # how long a connection that is alone looks for its next request
NBD_POLL_BYTES_MAX = 64 * KIB  # received at once; more is streaming
NBD_POLL_ROUNDS_MAX = 64  # then the event loop gets its turn
NBD_POLL_SKIP_MAX = 256  # turns without polling after it did not pay
NBD_DRAIN_TIMEOUT_S = 20.0

# --- the metadata store -----------------------------------------------------------------
METADATA_KEY_BYTES_MAX = 512
METADATA_VALUE_BYTES_MAX = 1 * MIB
METADATA_COMMIT_BYTES_MAX = 1 * MIB + 256 * KIB  # keys and values; etcd's default is 1.5 MiB
METADATA_COMMIT_CHANGES_MAX = 128  # and as many expectations; etcd's default
METADATA_HISTORY_CHANGES_MAX = 4096  # what a watch may lag behind before it must list anew
METADATA_HISTORY_BYTES_MAX = 16 * MIB
METADATA_POLL_S = 0.25  # a watch sees another process's change after at most this
METADATA_BUSY_TIMEOUT_S = 10.0
METADATA_LEASE_TTL_S_MAX = 24 * 3600.0
METADATA_THREADS_MAX = 8  # operations at once that an event loop has running on etcd
METADATA_CLOSE_S = 1.0  # how long closing waits for operations that have begun
ETCD_ATTEMPT_S = 2.5  # one request to one member; then another member is asked
ETCD_OPERATION_S = 6.0  # all attempts of one operation
ETCD_BACKOFF_S_MAX = 1.0  # between two rounds over members of which none answers
ETCD_PAGE_KEYS = 512  # of a listing, all pages at one revision
ETCD_LIST_ATTEMPTS_MAX = 5  # listings that a compaction interrupted
ETCD_PREFIX_BYTES_MAX = 128  # of the keys of one cluster
ETCD_MEMBERS_MAX = 16
ETCD_COMPACT_EVERY = 4096  # revisions between two compactions that torus asks for
ETCD_HISTORY_REVISIONS = 16384  # that a compaction leaves
HISTORY_MARK_S = 3600.0  # between two marks by which a disk knows an older copy of etcd
CATALOG_ATTEMPTS_MAX = 256  # lost races in a row before a command says "busy"

# --- nodes and their ring ---------------------------------------------------------------
NODE_LEASE_S = 10.0  # a node that does not renew its registration so long counts as down
COORDINATOR_LEASE_S = 5.0
COORDINATOR_STEP_S = 1.0  # between two looks at what is to be changed
JOIN_WAIT_S = 1.0  # disks that come so soon after one another join in one version of the ring
AUTO_OUT_S = 600.0  # a disk that is gone so long is put out of the ring
HOUSEKEEPING_S = 30.0  # between two looks at interrupted deletions and old rings
RINGS_KEPT = 16  # versions of the ring below which none is removed
RING_KEPT_S = 86400.0  # nor one that held so long ago: who cannot reach the metadata may name it
MASS_FAILURE_S = 30.0  # more than a third of the disks gone within it: nothing is moved

# --- upkeep: copies where the ring wants them -------------------------------------------
UPKEEP_ROUND_S = 600.0  # a disk looks at everything again so often
UPKEEP_SETTLE_S = 1.0  # after a change, before a disk looks: more changes may follow
UPKEEP_RETRY_S = 5.0  # after a round that left something undone
UPKEEP_ENCODE_S = 15.0  # between two looks for chunks that are full and become shards, at most
UPKEEP_NEWS_S = 2.0  # after a checkpoint, before a look for what it settled: first the dead go
UPKEEP_LOOK_SHARE = 1 / 16  # of a disk's time that goes into looking, at most, after such news
UPKEEP_TAIL_CHUNKS = 128  # the last of a span, which a replica that fails may have less of
UPKEEP_RINGS = 16  # versions before the newest that a disk knows, beside those that spans name
UPKEEP_LOOK_CHUNKS = 1024  # compared between two turns of the event loop
UPKEEP_WORK_MAX = 16384  # copies that one round pulls; the next one pulls the rest
UPKEEP_ASKED_AT_ONCE = 8  # disks that are asked at the same time
UPKEEP_EXAMINED_AT_ONCE = 256  # chunks in one question
UPKEEP_DROP_CHUNKS = 16  # copies given up at a time
UPKEEP_ANSWER_S = 60.0  # a question that makes the other side read chunks
REPAIR_RATE_BYTES_DEFAULT = 128 * MIB  # per second and disk
REPAIR_OPERATIONS = 1000  # per second and disk
REPAIR_PARALLEL = 4  # chunks that one disk pulls at once
REPAIR_PIECE_BYTES = 256 * KIB  # read from a source at a time: clients wait behind it
CLIENT_SLOW_US = 50_000  # p99 of a node's clients above which its upkeep goes slower
CLIENT_WINDOW_S = 2.0  # ...over so many seconds
CLIENT_REQUESTS_MIN = 20  # in a window: fewer say nothing about a p99
CLIENT_FEELS_US = 1000  # p99 below which nobody feels what moves
CLIENT_LOOK_S = 0.5  # between two looks of an owner at how its clients fare
CLIENT_WORD_S = 1.75  # that a word on clients counts
REPAIR_SLOW_US = 10_000  # a step that waits longer for its turn says that clients are slow

# --- scrub ------------------------------------------------------------------------------
SCRUB_LIGHT_S = 24 * 3600.0  # a light tour begins so long after the last one began
SCRUB_DEEP_S = 7 * 24 * 3600.0  # a deep one, and it may take as long
SCRUB_FIRST_S = 60.0  # after a node started: clients first
SCRUB_RATE_BYTES_MIN = 1 * MIB  # per second and disk, of a tour that the clock began
SCRUB_RATE_BYTES_ASKED = 128 * MIB  # of one that a person waits for
SCRUB_OPERATIONS = 200  # per second and disk
SCRUB_SAVE_S = 60.0  # between two times that a disk writes down how far it is
SCRUB_RECHECK_S = 15.0  # before what could not be repaired is looked at again
SCRUB_FINDINGS_MAX = 10_000  # of one disk that are open
SCRUB_CLOSED_MAX = 100  # that were repaired, or are gone
SCRUB_SHOWN_MAX = 200  # in one answer of a node

# --- snapshots and clones ---------------------------------------------------------------
SNAPSHOTS_MAX = 1024  # of one volume: each checkpoint's root record carries the list of them

# --- the peer protocol ------------------------------------------------------------------
PEER_FRAME_BYTES_MAX = 8 * MIB  # header and body
PEER_READ_BYTES_MAX = 4 * MIB  # of all pieces that one READ asks for
PEER_READS_MAX = 1024  # pieces of one READ
PEER_CHUNKS_MAX = 16384  # chunk ids in one SYNC, DELETE or page of a LIST
PEER_REPORT_BYTES_MAX = 1 * MIB  # of a REPORT, and of its answer
PEER_EXAMINE_CHUNKS_MAX = 64  # of one EXAMINE: each may be read whole
NEARBY_FILES_MAX = 512  # segments of other processes of this host that are kept open
NEARBY_REFUSED_MAX = 65536  # chunks whose file could not be had a moment ago, or not yet fetched
PEER_TEXT_BYTES_MAX = 4 * KIB  # an error's message or hint, a name
PEER_IN_FLIGHT_BYTES_MAX = 32 * MIB  # per connection: requests and the answers they ask for
PEER_IN_FLIGHT_REQUESTS_MAX = 1024
PEER_SERVED_BYTES_MAX = 512 * MIB  # of all connections to a node, beyond one request of each
PEER_CONNECTIONS_MAX = 4096
PEER_CONNECT_TIMEOUT_S = 5.0
PEER_HELLO_TIMEOUT_S = 10.0
PEER_REQUEST_TIMEOUT_S = 30.0
PEER_RETRY_S = 5.0  # how long a request without effects of its own is tried again
REPLICA_SILENCE_S = 0.5  # a node that says nothing for so long is taken for hung
PEER_REST_S = 15.0  # after the last request nobody looks whether the node is there, until the next
REPLICA_SYNC_S = 5.0  # a node that is alive may take so long for a sync
REPLICA_READ_S = 30.0  # how long a read or an attach waits for disks that are away
REPLICA_SCAN_S = 2.0  # of one question for the end of a log
REPLICA_GRACE_S = 0.3  # for the other copies, once one has said where the log ends
REPLICA_RETURN_FIRST_S = 2.0  # before a disk that was left out is tried again
REPLICA_RETURN_SLOTS = 64  # a disk that was full must have room for so many chunks, or a 16th of it
REPLICA_RETURN_MAX_S = 60.0  # the same, after it failed again and again
REPLICA_UNDELETED_MAX = 65536  # deletions that wait for a disk that is away; more are orphans
REPLICA_REPAIRS_MAX = 64  # bad copies that wait for their repair by a reader; more are left
CONTROL_REQUEST_BYTES_MAX = 64 * KIB
CONTROL_ANSWER_BYTES_MAX = 4 * MIB
CONTROL_CONNECTIONS_MAX = 32
CONTROL_TIMEOUT_S = 5.0
CONTROL_WAIT_S_MAX = 2.0  # how long a question about a task may wait for its end
TASKS_MAX = 16  # long operations at once that a process was asked for
TASK_KEPT_S = 60.0  # how long the outcome of one can be asked for
TASKS_KEPT_MAX = 256
TASK_END_S = 20.0  # how long a task that is to end may go on with its present step
RELEASE_HOLD_S_MAX = 30.0  # how long a volume that was taken away is not attached anew
MOVE_DRAIN_S = 0.5  # how long clients may take to finish what is in flight when a volume moves
MOVE_HOLD_S = 5.0  # how long who handed a volume over does not attach it by itself
STANDBY_LOOKS_MAX = 16  # reads through the owner before an export that stands by takes it over
STANDBY_LOOK_BYTES_MAX = 64 * KIB  # of one of them
MOVE_CHECKPOINTS_MAX = 4  # while clients go on, so that the last one is small
MOVE_LOG_BYTES = 16 * MIB  # since the last checkpoint: no reason for one more of them
ATTACH_CONNECTIONS_MAX = 16  # of one device of the kernel
ATTACH_DEAD_TIMEOUT_S = 3600  # how long the kernel waits for a gateway that is gone, by default
ATTACH_RESEND_MS = (
    5000  # after which the kernel asks a new gateway what the old one left unanswered
)
ATTACH_GIVE_UP_MS = 30000  # with several connections: a slow request costs its connection then
ATTACH_RESTART_RESEND_MS = 1000  # the same while a gateway is replaced in order
ATTACH_REQUEST_KIB = 4096  # largest request of a device; the kernel's own default is 128
ATTACH_READ_AHEAD_KIB = 1024
ATTACH_SOCKET_BYTES = 1 << 20  # buffers between the kernel and its gateway
ATTACH_SIZE_LOOK_S = 1.0  # how often a device is told the size of its volume, if it is another one
ATTACH_BACKOFF_S_MAX = 5.0  # between two starts of a gateway that does not last
ATTACH_LOG_BYTES_MAX = 16 * MIB  # of a log of a gateway in the background, at its start

assert BLOCK_BYTES % SECTOR_BYTES == 0
assert VOLUME_BYTES_MIN >= BLOCK_BYTES
assert SLOT_BYTES % BLOCK_BYTES == 0
assert SLOT_BYTES // RECORD_ALIGN_BYTES <= 1 << 16, "a map entry keeps its offset in 16 bits"
assert RECORD_PAYLOAD_BYTES_MAX < SLOT_BYTES - 64 * KIB
assert STORE_BYTES_MIN // SLOT_BYTES > 2 * RESERVE_SLOTS_MIN
assert NBD_IN_FLIGHT_BYTES_MAX >= 2 * NBD_REQUEST_BYTES_MAX
assert NBD_AWAY_S < REPLICA_READ_S
assert METADATA_VALUE_BYTES_MAX + METADATA_KEY_BYTES_MAX < METADATA_COMMIT_BYTES_MAX
assert METADATA_COMMIT_BYTES_MAX < METADATA_HISTORY_BYTES_MAX
assert METADATA_COMMIT_CHANGES_MAX < METADATA_HISTORY_CHANGES_MAX
assert PEER_FRAME_BYTES_MAX >= SLOT_BYTES + 64 * KIB, "a SCAN is answered in one frame"
assert PEER_FRAME_BYTES_MAX >= PEER_READ_BYTES_MAX + 64 * KIB
assert PEER_IN_FLIGHT_BYTES_MAX >= 2 * PEER_FRAME_BYTES_MAX
assert CONTROL_WAIT_S_MAX < CONTROL_TIMEOUT_S
assert PEER_RETRY_S < PEER_REQUEST_TIMEOUT_S

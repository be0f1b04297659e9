"""Keys of the metadata store: the only place that names them.  Their values:
torus.metadata.schema.

Implements docs/metadata.md, "Keys and values".
"""

CLUSTER = "cluster"
VOLUMES = "volumes/"  # by id: specification and head
NAMES = "names/"  # by name: the volume's id
NODES = "nodes/"  # processes that live now, under a lease
MEMBERS = "members/"  # by disk id: every disk that may hold data
RING = "ring/"
RING_HEAD = "ring/head"
RING_VERSIONS = "ring/versions/"
COORDINATOR = "coordinator"  # who changes the ring by itself, under a lease
SCRUB = "scrub/"
SCRUB_PAUSE = "scrub/pause"  # while it is there no disk scrubs
SNAPSHOTS = "snapshots/"  # by volume id and name
READERS = "readers/"  # by volume id and snapshot number: who reads a snapshot now
GATEWAYS = "gateways/"  # processes that serve volumes without a disk
NEXT_VOLUME = "next-volume"
MOVED = "moved"  # this store's content lies elsewhere now, or is on its way there
MOVING = "moving"  # this store's content is not complete yet
ORIGINS = "origins"  # where this store's content was before
MARKS = "marks/"  # by the holder of a history token: what tells an older copy
LOST = "lost/"  # by id: volumes with data on a disk that could not be recovered


def volume_prefix(volume: int) -> str:
    """Return the prefix of all keys of one volume; one list reads them at one revision."""
    return f"{VOLUMES}{volume:016x}/"


def spec_key(volume: int) -> str:
    """Return the key of a volume's specification."""
    return f"{VOLUMES}{volume:016x}/spec"


def head_key(volume: int) -> str:
    """Return the key of a volume's head: epoch, owner, spans, root."""
    return f"{VOLUMES}{volume:016x}/head"


def lost_key(volume: int) -> str:
    """Return the key that says that a volume's data is to be kept although nothing knows it."""
    return f"{LOST}{volume:016x}"


def name_key(name: str) -> str:
    """Return the key that maps a volume's name to its id."""
    return f"{NAMES}{name}"


def node_key(node: str) -> str:
    """Return the key of a node's registration."""
    return f"{NODES}{node}"


def member_key(disk: str) -> str:
    """Return the key of a disk's membership."""
    return f"{MEMBERS}{disk}"


def ring_key(version: int) -> str:
    """Return the key of one version of the ring; they are kept while a span names them."""
    return f"{RING_VERSIONS}{version:08x}"


def snapshots_prefix(volume: int) -> str:
    """Return the prefix of all snapshots of one volume."""
    return f"{SNAPSHOTS}{volume:016x}/"


def snapshot_key(volume: int, name: str) -> str:
    """Return the key of one snapshot."""
    return f"{snapshots_prefix(volume)}{name}"


def readers_prefix(volume: int, number: int) -> str:
    """Return the prefix of those who read one snapshot."""
    return f"{volume_readers_prefix(volume)}{number:08x}/"


def volume_readers_prefix(volume: int) -> str:
    """Return the prefix of those who read any snapshot of one volume."""
    return f"{READERS}{volume:016x}/"


def reader_key(volume: int, number: int, reader: str) -> str:
    """Return the key under which one reader of a snapshot says that it is there."""
    return f"{readers_prefix(volume, number)}{reader}"


def gateway_key(gateway: str) -> str:
    """Return the key of a gateway's registration."""
    return f"{GATEWAYS}{gateway}"


def mark_key(holder: str) -> str:
    """Return the key that only the holder of a history token writes."""
    return f"{MARKS}{holder}"

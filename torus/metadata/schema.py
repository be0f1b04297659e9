"""Keys and values of the metadata store: the only place that knows them.

Values are JSON objects with sorted keys, so that an operator can read them and equal values
have equal bytes.  Every value carries ``"format": 1``; another number is refused.

Implements docs/metadata.md, "Keys and values".
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torus.errors import Corruption, UnknownVersion

FORMAT = 1
CLUSTER = "cluster"
VOLUMES = "volumes/"  # by id: specification and head
NAMES = "names/"  # by name: the volume's id
NODES = "nodes/"
SNAPSHOTS = "snapshots/"  # by volume id and name
READERS = "readers/"  # by volume id and snapshot number: who reads a snapshot now
GATEWAYS = "gateways/"  # processes that serve volumes without a disk
NEXT_VOLUME = "next-volume"
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


class Value:
    """A value that is stored as JSON; fields are the dataclass's own."""

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of this value."""
        body = {"format": FORMAT, **dataclasses.asdict(self)}  # type: ignore[call-overload]
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> Self:
        """Read a value found under ``key``.

        Raises: Corruption when it is not such a value, UnknownVersion for another format.
        """
        try:
            body = json.loads(data)
            version = body.pop("format")
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise Corruption(f"metadata key {key!r} holds no torus value: {data[:80]!r}") from exc
        if version != FORMAT:
            raise UnknownVersion(
                f"metadata key {key!r} has format {version!r}, this torus knows {FORMAT}",
                hint="use the torus release that wrote it, or a newer one",
            )
        try:
            return cls._from_fields(body)
        except (TypeError, KeyError, ValueError) as exc:
            raise Corruption(f"metadata key {key!r} is not a {cls.__name__}: {exc}") from exc

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        return cls(**body)


@dataclass(frozen=True, slots=True)
class Cluster(Value):
    """Which cluster this store belongs to; written once."""

    cluster_id: str
    created_ns: int


@dataclass(frozen=True, slots=True)
class NextVolume(Value):
    """The id that the next volume gets; ids are never reused."""

    next_id: int


@dataclass(frozen=True, slots=True)
class NameRef(Value):
    """The volume that has a name."""

    volume: int


@dataclass(frozen=True, slots=True)
class VolumeSpec(Value):
    """What the operator asked for."""

    volume: int
    name: str
    size_bytes: int
    redundancy: str
    created_ns: int
    state: str = "ready"  # or "deleting": its chunks are being freed
    cut_bytes: int = 0  # smallest size since its writer last unmapped what was cut off; 0: none


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that serves a volume; for people and for liveness, never for safety."""

    host: str
    machine_boot_id: str  # kernel boot: a pid of another boot is dead
    pid: int
    pid_start: int  # start time in clock ticks, so that a reused pid is told apart
    role: str  # "node", "gateway", "import", ...
    address: str
    since_ns: int
    control: str = ""  # path of its control socket, for questions from the same machine


@dataclass(frozen=True, slots=True)
class Base:
    """The snapshot that a clone grew from and still reads."""

    volume: int
    number: int


@dataclass(frozen=True, slots=True)
class Span:
    """A run of chunks written under one (epoch, tag, ring version, excluded nodes).

    ``last`` and ``end`` are None while the span is open: then its end is found by walking it.
    ``end`` is the offset in the last chunk behind its last record.
    """

    epoch: int
    tag: int
    first: int
    last: int | None = None
    end: int | None = None
    ring: int = 0
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RootRef:
    """Where the root record of the last checkpoint lies, and where replay begins."""

    sequence: int
    offset: int
    size: int  # header and payload
    lsn: int  # all records up to this one are in the checkpoint's map
    replay_sequence: int
    replay_offset: int
    replay_index: int


THIS_RECORD = RootRef(0, 0, 0, 0, 0, 0, 0)  # in a root record's list: the snapshot it makes


@dataclass(frozen=True, slots=True)
class Head(Value):
    """All that the metadata store knows of a volume's log."""

    epoch: int
    owner: Owner | None
    spans: tuple[Span, ...]
    root: RootRef | None
    mapped_blocks: int = 0  # at the last checkpoint, for listings
    base: Base | None = None
    newest_snapshot: int = 0  # number of the last snapshot ever made; they are never reused

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        owner, root, base = body.pop("owner"), body.pop("root"), body.pop("base", None)
        spans = []
        for fields in body.pop("spans"):
            excluded = tuple(fields.pop("excluded"))
            spans.append(Span(**fields, excluded=excluded))
        return cls(
            owner=None if owner is None else Owner(**owner),
            root=None if root is None else RootRef(**root),
            base=None if base is None else Base(**base),
            spans=tuple(spans),
            **body,
        )


@dataclass(frozen=True, slots=True)
class Snapshot(Value):
    """A volume as it was at one moment.

    ``number`` orders the snapshots of a volume.  ``uid`` names the content: a backup stream
    carries it to other clusters.  ``root`` is None when nothing was written in the volume's own
    log yet; what it reads then is ``base``'s, or zeroes.
    """

    volume: int
    number: int
    name: str
    uid: str
    created_ns: int
    size_bytes: int
    root: RootRef | None
    base: Base | None = None
    mapped_blocks: int = 0
    protected: bool = False
    state: str = "ready"  # or "deleting"
    clones: tuple[int, ...] = ()  # ids of the volumes that grew from it and still read it

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        root, base = body.pop("root"), body.pop("base")
        return cls(
            root=None if root is None else RootRef(**root),
            base=None if base is None else Base(**base),
            clones=tuple(body.pop("clones")),
            **body,
        )


def snapshot_places(values: Sequence[bytes], where: str) -> list[tuple[int, int | None]]:
    """Return each snapshot's number and the sequence of the chunk that has its root; for a
    thousand in a third of the time that reading them takes.

    Raises: Corruption, UnknownVersion.
    """
    try:
        bodies = json.loads(b"[" + b",".join(values) + b"]")
        if len(bodies) == len(values) and all(body["format"] == FORMAT for body in bodies):
            return [
                (body["number"], None if body["root"] is None else body["root"]["sequence"])
                for body in bodies
            ]
    except (ValueError, KeyError, TypeError):
        pass  # one of them is no snapshot of ours: find out which, and say why
    read = [Snapshot.from_bytes(value, where) for value in values]
    return [(one.number, None if one.root is None else one.root.sequence) for one in read]


@dataclass(frozen=True, slots=True)
class Reader(Value):
    """A process that reads a snapshot; the snapshot stays while its process lives."""

    host: str
    machine_boot_id: str
    pid: int
    pid_start: int
    role: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Gateway(Value):
    """A gateway's registration: which volumes it serves where."""

    gateway_id: str
    host: str
    machine_boot_id: str
    pid: int
    pid_start: int
    nbd_addresses: tuple[str, ...]
    control: str
    since_ns: int

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        body["nbd_addresses"] = tuple(body["nbd_addresses"])
        return cls(**body)


@dataclass(frozen=True, slots=True)
class Node(Value):
    """A node's registration: where it listens and what it holds."""

    node_id: str
    host: str
    machine_boot_id: str
    pid: int
    pid_start: int
    data_dirs: tuple[str, ...]
    peer_address: str  # unix:PATH or host:port of the peer protocol
    nbd_addresses: tuple[str, ...]
    http_address: str
    size_bytes: int
    since_ns: int

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        for name in ("data_dirs", "nbd_addresses"):
            body[name] = tuple(body[name])
        return cls(**body)

"""Values of the metadata store: the only place that knows them.  Their keys: torus.metadata.keys.

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


class Value:
    """A value that is stored as JSON; fields are the dataclass's own."""

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of this value."""
        body = {"format": FORMAT, **self._to_fields()}
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    def _to_fields(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

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
    secret: str = ""  # 32 bytes in hex: peers prove with it that they belong here


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
    min_copies: int = 1  # writes wait while fewer copies than this can be had
    former: tuple[str, ...] = ()  # redundancies that it had before: chunks may lie as they say

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        return cls(former=tuple(body.pop("former", ())), **body)


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
    """A run of chunks written under one (epoch, tag, ring version, excluded disks).

    ``last`` and ``end`` are None while the span is open: then its end is found by walking it.
    ``end`` is the offset in the last chunk behind its last record.  ``short``: disks that may
    have less of its last chunks, beside those that the span behind it leaves out, if it is there.
    """

    epoch: int
    tag: int
    first: int
    last: int | None = None
    end: int | None = None
    ring: int = 0
    excluded: tuple[str, ...] = ()
    copies: int = 0  # that each of its chunks was written with; 0: those of the first redundancy
    short: tuple[str, ...] = ()


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

    def _to_fields(self) -> dict[str, Any]:
        body = super(Head, self)._to_fields()
        for span in body["spans"]:
            if not span["short"]:  # as nearly always: what knows no such spans reads the others
                del span["short"]
        return body

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        owner, root, base = body.pop("owner"), body.pop("root"), body.pop("base", None)
        spans = []
        for fields in body.pop("spans"):
            excluded, short = tuple(fields.pop("excluded")), tuple(fields.pop("short", ()))
            spans.append(Span(**fields, excluded=excluded, short=short))
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
        return cls(**body | {"nbd_addresses": tuple(body["nbd_addresses"])})


@dataclass(frozen=True, slots=True)
class Node(Value):
    """A node's registration: where it listens and what it holds.

    ``node_id`` stays with the node's disks, ``instance_id`` is drawn at each start.
    """

    node_id: str
    host: str
    machine_boot_id: str
    pid: int
    pid_start: int
    data_dirs: tuple[str, ...]
    peer_address: str  # unix:PATH of the peer protocol, for processes of the same host
    nbd_addresses: tuple[str, ...]
    http_address: str
    size_bytes: int  # of all disks
    since_ns: int
    disks: tuple[str, ...] = ()  # ids of those that work, in the order of data_dirs
    peer_tcp: str = ""  # HOST:PORT of the peer protocol, for other hosts; empty: none
    instance_id: str = ""
    version: str = ""  # of torus

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        lists = ("data_dirs", "nbd_addresses", "disks")
        return cls(**body | {name: tuple(body.get(name, ())) for name in lists})


@dataclass(frozen=True, slots=True)
class Member(Value):
    """A disk that may hold data, alive or not; the ring is made of those that are "in"."""

    disk_id: str
    node_id: str
    host: str
    zone: str  # "" is a zone like another
    weight: int  # share of the chunks; the disk's size in GiB unless the operator set it
    size_bytes: int
    state: str  # "in", "waiting" (not joined yet), "draining", "out" (gone too long), "removed"
    since_ns: int  # of that state
    reason: str = ""  # of that state, for people
    down_ns: int = 0  # since when the coordinator misses it, for people; 0: it does not


@dataclass(frozen=True, slots=True)
class RingHead(Value):
    """Which version of the ring new spans are written under and data moves towards."""

    version: int
    paused: bool = False  # data does not move
    frozen: str = ""  # why the ring is not changed by itself; empty: it is


@dataclass(frozen=True, slots=True)
class RingVersion(Value):
    """One version of the ring; ``table`` is what torus.ring.codec makes, in base64."""

    version: int
    created_ns: int
    reason: str
    table: str


@dataclass(frozen=True, slots=True)
class ScrubPause(Value):
    """No disk of the cluster scrubs."""

    since_ns: int
    by: str  # who said so, for people: USER@HOST


@dataclass(frozen=True, slots=True)
class Coordinator(Value):
    """The node that changes the ring by itself."""

    node_id: str
    instance_id: str
    host: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Moved(Value):
    """The content of this store lies at ``target``, or goes there."""

    target: str  # a URL
    uid: str  # of the move, so that its steps know each other
    state: str  # "moving" or "moved"
    since_ns: int


@dataclass(frozen=True, slots=True)
class Moving(Value):
    """Not all of the content has arrived here from ``source``."""

    source: str
    uid: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Origin:
    """An etcd that the content came from, and the revision up to which it did."""

    cluster: str
    revision: int


@dataclass(frozen=True, slots=True)
class Origins(Value):
    """How the content came here: the move's uid, and the etcds where it was, newest last."""

    uid: str
    places: tuple[Origin, ...]

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        return cls(body["uid"], tuple(Origin(**fields) for fields in body["places"]))


@dataclass(frozen=True, slots=True)
class Mark(Value):
    """What the holder of a history token wrote, and what it wrote before."""

    now: str
    before: str

"""Keys and values of the metadata store: the only place that knows them.

Values are JSON objects with sorted keys, so that an operator can read them and equal values
have equal bytes.  Every value carries ``"format": 1``; another number is refused.

Implements docs/metadata.md, "Keys and values".
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Self

from torus.errors import Corruption, UnknownVersion

FORMAT = 1
CLUSTER = "cluster"
VOLUMES = "volumes/"  # by id: specification and head
NAMES = "names/"  # by name: the volume's id
NODES = "nodes/"
NEXT_VOLUME = "next-volume"


def volume_prefix(volume: int) -> str:
    """Return the prefix of all keys of one volume; one list reads them at one revision."""
    return f"{VOLUMES}{volume:016x}/"


def spec_key(volume: int) -> str:
    """Return the key of a volume's specification."""
    return f"{VOLUMES}{volume:016x}/spec"


def head_key(volume: int) -> str:
    """Return the key of a volume's head: epoch, owner, spans, root."""
    return f"{VOLUMES}{volume:016x}/head"


def name_key(name: str) -> str:
    """Return the key that maps a volume's name to its id."""
    return f"{NAMES}{name}"


def node_key(node: str) -> str:
    """Return the key of a node's registration."""
    return f"{NODES}{node}"


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


@dataclass(frozen=True, slots=True)
class Head(Value):
    """All that the metadata store knows of a volume's log."""

    epoch: int
    owner: Owner | None
    spans: tuple[Span, ...]
    root: RootRef | None
    mapped_blocks: int = 0  # at the last checkpoint, for listings

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Self:
        owner, root = body.pop("owner"), body.pop("root")
        spans = []
        for fields in body.pop("spans"):
            excluded = tuple(fields.pop("excluded"))
            spans.append(Span(**fields, excluded=excluded))
        return cls(
            owner=None if owner is None else Owner(**owner),
            root=None if root is None else RootRef(**root),
            spans=tuple(spans),
            **body,
        )


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

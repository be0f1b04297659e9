"""What a disk remembers of its scrubbing, also over a restart: tours, results, findings.

Decides the bytes of the small file beside the segments, and how many findings are kept.  A file
that cannot be read costs the memory of former tours, nothing else.  Pure.

Implements docs/scrub.md, "What is remembered".
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torus import limits
from torus.ids import ChunkId, volume_of
from torus.upkeep.scrub_judge import Damage, Kind

FILE_NAME = "scrub.json"
VERSION = 1
LIGHT, DEEP = "light", "deep"

FOUND = "found"  # to be repaired
WAITING = "waiting"  # a disk that may have it whole is silent, or has yet to repair it
LOST = "lost"  # everybody who should have it was asked, and nobody has it whole
REPAIRED = "repaired"
GONE = "gone"  # the part was deleted, or given up


@dataclass(slots=True)
class Finding:
    """One damaged part of a chunk."""

    part: ChunkId
    kind: str
    name: str  # of its volume; empty: not known
    where: str  # file and place on this disk
    what: str
    state: str
    found_ns: int  # wall clock
    changed_ns: int

    @property
    def volume(self) -> int:
        """Return the id of its volume."""
        return volume_of(self.part)


@dataclass(slots=True)
class Tour:
    """One way over all chunks, or over those of some volumes."""

    deep: bool
    asked: bool  # by a person, who waits for it
    volumes: tuple[int, ...]  # empty: all
    began_ns: int  # wall clock
    cursor: ChunkId | None = None  # the last one that was looked at
    chunks: int = 0
    bytes: int = 0
    found: int = 0

    @property
    def depth(self) -> str:
        """Return "light" or "deep"."""
        return DEEP if self.deep else LIGHT


@dataclass(frozen=True, slots=True)
class Done:
    """The last tour over everything that was ended."""

    began_ns: int
    ended_ns: int
    chunks: int
    bytes: int
    found: int


@dataclass(slots=True)
class ScrubState:
    """All of it."""

    tours: list[Tour] = field(default_factory=list)  # the one that goes on now is the last
    last: dict[str, Done] = field(default_factory=dict)  # by depth
    open: dict[ChunkId, Finding] = field(default_factory=dict)
    closed: list[Finding] = field(default_factory=list)  # the newest last
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Kind), 0))
    repaired: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Kind), 0))

    def note(self, part: ChunkId, damage: Damage, name: str, where: str, now_ns: int) -> Finding:
        """Enter damage; what was known before keeps its time."""
        known = self.open.get(part)
        if known is not None:
            known.kind, known.where, known.what = str(damage.kind), where, damage.what
            known.name = name or known.name
            return known
        found = Finding(part, str(damage.kind), name, where, damage.what, FOUND, now_ns, now_ns)
        self.found[found.kind] += 1
        if len(self.open) < limits.SCRUB_FINDINGS_MAX:
            self.open[part] = found
        return found

    def close(self, part: ChunkId, state: str, now_ns: int) -> Finding | None:
        """End a finding: the part is whole again, or gone; None when there was none."""
        found = self.open.pop(part, None)
        if found is None:
            return None
        found.state, found.changed_ns = state, now_ns
        if state == REPAIRED:
            self.repaired[found.kind] += 1
        self.closed = [*self.closed, found][-limits.SCRUB_CLOSED_MAX :]
        return found

    def count(self, state: str) -> int:
        """Return how many open findings are in a state."""
        return sum(one.state == state for one in self.open.values())

    def to_bytes(self) -> bytes:
        """Return the file."""
        document = asdict(self)
        document["open"] = [asdict(one) for one in self.open.values()]
        return json.dumps({"version": VERSION, **document}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "ScrubState":
        """Read the file.  Raises: ValueError when it is not one."""
        try:
            return _read(json.loads(data))
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError(f"{FILE_NAME} cannot be read: {exc!r}") from exc


def _read(document: Mapping[str, Any]) -> ScrubState:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']!r}")
    state = ScrubState()
    for one in document["tours"]:
        cursor = None if one["cursor"] is None else ChunkId(*one["cursor"])
        volumes = tuple(int(volume) for volume in one["volumes"])
        state.tours.append(Tour(**{**one, "cursor": cursor, "volumes": volumes}))
    state.last = {depth: Done(**one) for depth, one in document["last"].items()}
    for one in document["open"]:
        found = _finding(one)
        state.open[found.part] = found
    state.closed = [_finding(one) for one in document["closed"]]
    for kind in Kind:
        state.found[kind] = int(document["found"][kind])
        state.repaired[kind] = int(document["repaired"][kind])
    return state


def _finding(document: Mapping[str, Any]) -> Finding:
    return Finding(**{**document, "part": ChunkId(*document["part"])})

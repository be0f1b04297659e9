"""The identity of a disk: a small file that says whose data directory this is.

Implements docs/format.md, "Disk identity".
"""

import json
from dataclasses import asdict, dataclass

from torus._fast.crc import checksum
from torus.errors import Corruption, UnknownVersion
from torus.format.segment import Geometry

IDENTITY_FILE = "disk.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """Made when a directory becomes a torus disk; ids are 32 hex digits."""

    disk_id: str
    cluster_id: str
    slot_bytes: int
    segment_slots: int
    created_ns: int
    size_bytes: int = 0  # the operator's limit; the one field that may change
    node_id: str = ""  # of the node that it was made for; empty: the disk's own id

    @property
    def node(self) -> str:
        """Return the id of the node that this disk belongs to."""
        return self.node_id or self.disk_id

    @property
    def geometry(self) -> Geometry:
        """Return how this disk is cut up."""
        return Geometry(self.slot_bytes, self.segment_slots)

    def to_bytes(self) -> bytes:
        """Return the file's content: JSON with a checksum of its other fields."""
        body = {"format": VERSION, **asdict(self)}
        if not self.node_id:
            del body["node_id"]
        body["checksum"] = f"{checksum(_canonical(body)):08x}"
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "DiskIdentity":
        """Read the file's content.

        Raises: Corruption, UnknownVersion.
        """
        try:
            body = json.loads(data)
            stored, version = body.pop("checksum"), body["format"]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise Corruption(f"{where}: not a torus disk identity: {data[:60]!r}") from exc
        if version != VERSION:
            raise UnknownVersion(
                f"{where}: disk format {version!r}, this torus knows {VERSION}",
                hint="use the torus release that made it, or a newer one",
            )
        found = f"{checksum(_canonical(body)):08x}"
        if stored != found:
            raise Corruption(f"{where}: checksum {stored} stored, {found} found")
        del body["format"]
        try:
            return cls(**body)
        except TypeError as exc:
            raise Corruption(f"{where}: {exc}") from exc


def _canonical(body: dict[str, object]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

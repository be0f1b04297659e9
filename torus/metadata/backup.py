"""A metadata store as a file: the backup of a cluster's metadata.

Decides the bytes: one JSON object a line, the first names the cluster, each further one is an
entry, the last counts them and holds the SHA-256 of all lines before it.

Implements docs/metadata.md, "Backups".
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torus.errors import Corruption, ForeignData, UnknownVersion
from torus.metadata.base import Entry
from torus.metadata.schema import Origin

FORMAT = 1
_KIND = "torus metadata"


@dataclass(frozen=True, slots=True)
class Backup:
    """What a file holds; ``digest`` names its content."""

    cluster_id: str
    revision: int
    created_ns: int
    origins: tuple[Origin, ...]
    entries: tuple[Entry, ...]
    digest: str = ""


def lines(backup: Backup) -> Iterator[bytes]:
    """Return the lines of the file."""
    digest = hashlib.sha256()
    head: dict[str, Any] = {
        "kind": _KIND,
        "format": FORMAT,
        "cluster_id": backup.cluster_id,
        "revision": backup.revision,
        "created_ns": backup.created_ns,
        "origins": [asdict(origin) for origin in backup.origins],
    }
    bodies: tuple[dict[str, Any], ...] = (head, *(_entry(entry) for entry in backup.entries))
    for body in bodies:
        line = _line(body)
        digest.update(line)
        yield line
    yield _line({"entries": len(backup.entries), "sha256": digest.hexdigest()})


def read(found: Sequence[bytes], name: str) -> Backup:
    """Read the lines of the file ``name``.

    Raises: Corruption, ForeignData when it is no such file, UnknownVersion.
    """
    if len(found) < 2:
        raise Corruption(f"{name} is cut off: it has {len(found)} lines")
    head = _body(found[0], name, 1)
    if head.get("kind") != _KIND:
        raise ForeignData(f"{name} is not a backup of metadata that 'torus meta export' made")
    if head.get("format") != FORMAT:
        raise UnknownVersion(f"{name} has format {head.get('format')}, this torus knows {FORMAT}")
    last = _body(found[-1], name, len(found))
    digest = hashlib.sha256(b"".join(found[:-1])).hexdigest()
    if last.get("sha256") != digest or last.get("entries") != len(found) - 2:
        raise Corruption(
            f"{name} is damaged or cut off: its lines do not match the checksum in its last one",
            hint="take an older backup",
        )
    try:
        entries = []
        for number, line in enumerate(found[1:-1], start=2):
            body = _body(line, name, number)
            text = body.get("text")
            value = base64.b64decode(body["base64"]) if text is None else text.encode()
            entries.append(Entry(body["key"], value, 0))
        return Backup(
            cluster_id=head["cluster_id"],
            revision=head["revision"],
            created_ns=head["created_ns"],
            origins=tuple(Origin(**one) for one in head["origins"]),
            entries=tuple(entries),
            digest=digest,
        )
    except (KeyError, TypeError, AttributeError, binascii.Error) as exc:
        raise Corruption(f"{name} is not such a backup: {exc}") from exc


def _entry(entry: Entry) -> dict[str, str]:
    try:
        return {"key": entry.key, "text": entry.value.decode()}
    except UnicodeDecodeError:
        return {"key": entry.key, "base64": base64.b64encode(entry.value).decode()}


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def _body(line: bytes, name: str, number: int) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError as exc:
        raise Corruption(f"{name} line {number} is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise Corruption(f"{name} line {number} is no JSON object")
    return body

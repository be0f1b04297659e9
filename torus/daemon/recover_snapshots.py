"""Snapshots made anew from a root's list of them, and the bonds between clones and origins.

Decides which snapshot a list names, which root is whose, and which clone reads which snapshot.
A snapshot that was made from the metadata alone, after the newest root, stands in no list; when
a clone reads it, its root can only be that newest one, and it comes back under another name.

Implements docs/format.md, "Rebuilding lost metadata".
"""

import json
from dataclasses import replace

from torus import limits
from torus.errors import Corruption
from torus.format.root import unpack_list
from torus.metadata.schema import THIS_RECORD, Base, Head, RootRef, Snapshot, VolumeSpec
from torus.volume.catalog_ask import READY
from torus.volume.origin import Origin
from torus.volume.spans import Spans


def read_snapshots(data: bytes, where: str, made_by: RootRef | None) -> list[Snapshot]:
    """Return the snapshots that a root or head record lists.

    ``made_by`` is the root record itself: it is the root of a snapshot that it made.  Clones
    are left out; `Bonds.clones` knows them.

    Raises: Corruption, UnknownVersion.
    """
    values = [json.dumps(value).encode() for value in unpack_list(data, where)]
    snapshots = []
    for value in values:
        snapshot = replace(Snapshot.from_bytes(value, where), clones=())
        if snapshot.root == THIS_RECORD:
            snapshot = replace(snapshot, root=made_by)
        snapshots.append(snapshot)
    return snapshots


class Bonds:
    """All snapshots of all volumes that came back, and who reads them."""

    def __init__(self, *, infer: bool = True) -> None:
        """``infer``: a snapshot that only a clone names was made since the newest root."""
        self._infer = infer
        self.inferred: list[Base] = []
        self.specs: dict[int, VolumeSpec] = {}
        self.heads: dict[int, Head] = {}
        self._snapshots: dict[int, dict[int, Snapshot]] = {}

    def add(self, spec: VolumeSpec, head: Head, snapshots: list[Snapshot]) -> None:
        """Take a volume with its snapshots."""
        self.specs[spec.volume], self.heads[spec.volume] = spec, head
        self._snapshots[spec.volume] = {one.number: one for one in snapshots}

    def bases(self, volume: int) -> set[Base]:
        """Return the snapshots that a volume, or a snapshot of it, grew from."""
        head, snapshots = self.heads[volume], self._snapshots[volume].values()
        return {one for one in (head.base, *(each.base for each in snapshots)) if one is not None}

    def origin(self, base: Base | None) -> Origin:
        """Return where a clone with that base comes from.

        Raises: Corruption when an ancestor or its snapshot did not come back.
        """
        ancestors: list[Spans] = []
        root, member = None, 0
        for snapshot in self.chain(base):
            ancestors.append(Spans(snapshot.volume, self.heads[snapshot.volume].spans))
            if root is None and snapshot.root is not None:
                root, member = snapshot.root, len(ancestors)
        return Origin(tuple(ancestors), root, member)

    def chain(self, base: Base | None) -> list[Snapshot]:
        """Return the snapshots that a clone with that base reads through, nearest first.

        Raises: Corruption when one did not come back, or the chain is too long to be true.
        """
        found: list[Snapshot] = []
        while base is not None:
            if len(found) == limits.CLONE_DEPTH_MAX:
                raise Corruption(
                    f"its chain of origins is longer than {limits.CLONE_DEPTH_MAX}: it ends nowhere"
                )
            found.append(self.find(base))
            base = found[-1].base
        return found

    def snapshots_of(self, volume: int) -> list[Snapshot]:
        """Return a volume's snapshots by number."""
        return [one for _, one in sorted(self._snapshots[volume].items())]

    def find(self, base: Base) -> Snapshot:
        """Return a snapshot.

        Raises: Corruption when it, or its volume, did not come back.
        """
        head = self.heads.get(base.volume)
        if head is None:
            raise Corruption(f"volume id {base.volume}, of which it is a clone, is not there")
        found = self._snapshots[base.volume].get(base.number)
        if found is None and self._infer and base.number > head.newest_snapshot:
            found = self._made_since(base)
        if found is None:
            raise Corruption(
                f"snapshot number {base.number} of volume id {base.volume}, of which it is a "
                "clone, was not found"
            )
        return found

    def _made_since(self, base: Base) -> Snapshot:
        """Make a snapshot that was made from the metadata alone, after the newest root."""
        spec, head = self.specs[base.volume], self.heads[base.volume]
        made = Snapshot(
            base.volume, base.number, f"recovered-{base.number}",
            f"recovered-{base.volume}-{base.number}", spec.created_ns, spec.size_bytes,
            head.root, head.base, head.mapped_blocks,
        )  # fmt: skip
        self._snapshots[base.volume][base.number] = made
        self.inferred.append(base)
        return made

    def settle(self) -> None:
        """Write into every snapshot which volumes read it, and count the newest of each."""
        readers: dict[Base, set[int]] = {}
        for volume in self.heads:
            for base in self.bases(volume):
                readers.setdefault(base, set()).add(volume)
        for volume, snapshots in self._snapshots.items():
            for number, one in snapshots.items():
                clones = tuple(sorted(readers.get(Base(volume, number), ())))
                # Its clones came back: whoever began to delete it did not go on.
                state = READY if clones else one.state
                snapshots[number] = replace(one, clones=clones, state=state)
            newest = max([self.heads[volume].newest_snapshot, *snapshots])
            self.heads[volume] = replace(self.heads[volume], newest_snapshot=newest)

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots; names are unique within a volume."""
        found = []
        for by_number in self._snapshots.values():
            names: set[str] = set()
            for number in sorted(by_number):
                one = by_number[number]
                if one.name in names:
                    one = replace(one, name=f"{one.name[:100]}-recovered-{number}")
                names.add(one.name)
                found.append(one)
        return found

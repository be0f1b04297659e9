"""The rules of a volume's epoch: who becomes its writer, and who is it no longer.

Decides when the epoch rises and when its holder may write the head.  Written like
`torus.volume.catalog_steps`, as generators that do no I/O.

Implements docs/metadata.md, "The catalog".
"""

import dataclasses

from torus.errors import Fenced, LocalProtocolError
from torus.limits import CATALOG_ATTEMPTS_MAX
from torus.metadata.base import Delete, Expect, Put
from torus.metadata.keys import head_key, spec_key
from torus.metadata.schema import Head, Owner, VolumeSpec
from torus.volume.catalog_ask import (
    Alive,
    Commit,
    Steps,
    Volume,
    describe,
    get_by_id,
    read_entry,
    refuse_attached,
    refuse_deleting,
    replace_volume,
    too_many_races,
)
from torus.volume.owner import same_process


def acquire(volume_id: int, owner: Owner, *, takeover: bool, alive: Alive) -> Steps[Volume]:
    """Become the volume's only writer: raise its epoch by one, in the name of ``owner``.

    Raises: NotFound; Busy when the volume is being deleted, or when it has an owner that is
        alive or may be and ``takeover`` is not set.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        volume = yield from get_by_id(volume_id)
        refuse_deleting(volume)
        if not takeover:
            refuse_attached(volume, alive, "detach it there first, or take it over by force")
        head = dataclasses.replace(volume.head, epoch=volume.head.epoch + 1, owner=owner)
        written = yield from replace_volume(volume, volume.spec, head)
        if written is not None:
            return written
    raise too_many_races(f"volume id {volume_id}")


def publish(volume_id: int, head: Head, head_revision: int) -> Steps[int]:
    """Replace the head that ``head.owner`` wrote at ``head_revision``; return the new revision.

    After an attempt whose outcome is unknown it may be repeated with the same arguments: a
    head that is there already counts as written.

    Raises: Fenced when the epoch is no longer the holder's; LocalProtocolError when the holder
        itself published something else since ``head_revision``, which this would undo.
    """
    return (yield from _write_head(volume_id, head, head, head_revision))


def release(volume_id: int, head: Head, head_revision: int) -> Steps[int]:
    """Write ``head`` for the last time, without its owner; return the new revision.

    Raises: Fenced when the epoch is no longer the holder's.
    """
    written = dataclasses.replace(head, owner=None)
    return (yield from _write_head(volume_id, head, written, head_revision))


def settle_cut(volume_id: int, head_revision: int, cut_bytes: int) -> Steps[VolumeSpec]:
    """Forget a cut as the head's holder, who unmapped all behind ``cut_bytes``, durably, and has
    written nothing there since.  A deeper cut stays.

    Returns: the specification as it is then.
    Raises: Fenced when the head is not at ``head_revision`` any more.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        volume = yield from get_by_id(volume_id)
        if volume.head_revision != head_revision:
            raise Fenced(
                f"volume {volume.spec.name!r} is lost to this process: its head is at revision "
                f"{volume.head_revision}, expected {head_revision}"
            )
        spec = volume.spec
        if spec.cut_bytes == 0 or spec.cut_bytes < cut_bytes:
            return spec
        settled = dataclasses.replace(spec, cut_bytes=0)
        key = spec_key(volume_id)
        done: int | None = yield Commit(
            (Expect(key, volume.spec_revision), Expect(head_key(volume_id), head_revision)),
            (Put(key, settled.to_bytes()),),
        )
        if done is not None:
            return settled
    raise too_many_races(f"volume id {volume_id}")


def _write_head(volume_id: int, held: Head, written: Head, revision: int) -> Steps[int]:
    done = yield from commit_head(volume_id, held, written, revision)
    if done is None:  # nothing else was expected
        raise LocalProtocolError(f"the store refused a head at its own revision {revision}")
    return done


def commit_head(
    volume_id: int,
    held: Head,
    written: Head,
    revision: int,
    expect: tuple[Expect, ...] = (),
    changes: tuple[Put | Delete, ...] = (),
) -> Steps[int | None]:
    """Replace the head ``held``, read at ``revision``, by ``written``, with more in one commit.

    ``written`` must differ from what was there.  Then a head that is there already proves that
    an earlier attempt did all of it, whatever became of the other keys since.

    Returns: the new revision, or None when the head is unchanged but ``expect`` did not hold.
    Raises: Fenced, LocalProtocolError as `publish`.
    """
    key = head_key(volume_id)
    value = written.to_bytes()
    done: int | None = yield Commit((Expect(key, revision), *expect), (Put(key, value), *changes))
    if done is not None:
        return done
    entry = yield from read_entry(key)
    if entry is None:
        raise _fenced(volume_id, held, None)
    if entry.revision == revision:
        return None
    if entry.value == value:
        return entry.revision
    present = Head.from_bytes(entry.value, key)
    if present.epoch == held.epoch and same_process(present.owner, held.owner):
        raise LocalProtocolError(
            f"the head of volume id {volume_id} is at revision {entry.revision}, expected "
            f"{revision}: its holder published twice at once"
        )
    raise _fenced(volume_id, held, present)


def _fenced(volume_id: int, held: Head, present: Head | None) -> Fenced:
    if present is None:
        found = "the volume was deleted"
    elif present.owner is None:
        found = f"epoch {present.epoch} has no owner"
    else:
        found = f"epoch {present.epoch} is held by {describe(present.owner)}"
    return Fenced(
        f"volume id {volume_id} is lost to this process: it held epoch {held.epoch}, now {found}",
        hint="another process took the volume over; what this one did not flush is lost",
    )

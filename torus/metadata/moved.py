"""Stores whose content lies elsewhere, or has not all arrived yet.

Decides who is refused: everybody but the migration itself.  The marks are keys of the store, so
they are set and looked at in the same transaction as what they guard.

Implements docs/metadata.md, "Moving to etcd".
"""

from torus.errors import Busy, ConfigError
from torus.metadata.keys import MOVED, MOVING
from torus.metadata.schema import Moved, Moving

DONE = "moved"
UNDER_WAY = "moving"


def refuse_moved(value: bytes | None, place: str) -> None:
    """Refuse a store that says, with ``value`` under `keys.MOVED`, that it is not the one.

    Raises: ConfigError when it was moved, Busy when it is being moved.
    """
    if value is None:
        return
    moved = Moved.from_bytes(value, MOVED)
    if moved.state == DONE:
        raise ConfigError(
            f"metadata store {place} was moved to {moved.target}; nothing uses it any more",
            hint=f"start with --meta {moved.target} (or TORUS_META)",
        )
    raise Busy(
        f"metadata store {place} is being moved to {moved.target}",
        hint=f"finish it with 'torus meta migrate --to {moved.target}', or take it back with "
        "'torus meta migrate --abort'",
    )


def refuse_unfinished(value: bytes | None, place: str) -> None:
    """Refuse a store whose content, says ``value`` under `keys.MOVING`, is not complete.

    Raises: Busy.
    """
    if value is not None:
        moving = Moving.from_bytes(value, MOVING)
        raise Busy(
            f"metadata store {place} is not complete: {moving.source} is on its way there",
            hint="run the same 'torus meta' command again: it goes on where it ended",
        )

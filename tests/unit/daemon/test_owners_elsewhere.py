"""Whether the owner of a volume lives, in a cluster: seen on this host, and told by its lease."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from torus.clock import SystemClock
from torus.daemon.owners_elsewhere import alive_in
from torus.metadata.schema import Gateway, Node, Owner
from torus.volume.owner import this_process

ME = this_process("node", "", SystemClock())  # lives, and can be seen
DEAD = replace(ME, pid_start=ME.pid_start + 1)
FAR = replace(ME, host="elsewhere", machine_boot_id="another")
COMMAND = replace(ME, role="command")


@dataclass
class Members:
    """What `alive_in` asks of a membership."""

    away_since_ns: int | None = None
    registered: list[Owner] = field(default_factory=list)

    def nodes(self) -> dict[str, Node]:
        """Return nobody: gateways will do."""
        return {}

    def gateways(self) -> dict[str, Gateway]:
        """Return who is registered."""
        return {
            str(number): Gateway(
                str(number), one.host, one.machine_boot_id, one.pid, one.pid_start, (), "", 0
            )
            for number, one in enumerate(self.registered)
        }


def alive(owner: Owner, **given: Any) -> bool | None:
    """Return what a membership that stands like this says of an owner."""
    return alive_in(Members(**given))(owner)  # type: ignore[arg-type]


@pytest.mark.parametrize("owner", [ME, FAR])
def test_owner_lives_as_long_as_it_has_its_lease(owner: Owner) -> None:
    """The same on this host and on another: a process that hangs loses its lease."""
    assert alive(owner, registered=[owner]) is True
    assert alive(owner) is False
    assert alive(owner, registered=[replace(owner, pid=owner.pid + 1)]) is False


def test_dead_process_of_this_host_needs_no_lease_to_end() -> None:
    """Its volumes can be had at once."""
    assert alive(DEAD, registered=[DEAD]) is False


def test_store_that_is_away_says_of_nobody_that_it_is_dead() -> None:
    """Then only what can be seen counts."""
    assert alive(ME, away_since_ns=1) is True
    assert alive(FAR, away_since_ns=1) is None


def test_command_holds_no_lease() -> None:
    """What can be seen of it counts."""
    assert alive(COMMAND) is True
    assert alive(replace(COMMAND, host="elsewhere")) is None

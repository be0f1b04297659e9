"""The parent of a gateway: what it makes of each end, with gateways that do what a test says."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torus.config import CommonConfig, GatewayConfig
from torus.daemon import kernel_gateway, kernel_supervisor
from torus.daemon.kernel_device import Ending
from torus.daemon.kernel_gateway import Mission
from torus.daemon.kernel_state import AttachOrder, AttachPlace, AttachState
from torus.daemon.kernel_supervisor import Wanted, supervise
from torus.errors import Busy, Fenced, NotFound, Unavailable

Gateway = Callable[[Mission, Callable[[dict[str, Any]], None]], int]


class Stage:
    """Gateways to come, and what the supervisor did between them."""

    def __init__(self, folder: Path) -> None:
        self.place = AttachPlace(folder / "attach", "vm1")
        self.place.folder.mkdir()
        self.states: list[AttachState] = []
        self.disconnected: list[int] = []
        self.seen = folder / "seen"
        self.order = AttachOrder("vm1", "torus:abc:0000000000000001")
        self.waiting: int | None = None
        self.devices = {0: True, 1: False, 2: False}

    def run(self, *gateways: Gateway) -> int:
        """Supervise; the Nth gateway that is forked is the Nth given."""

        def run_device(mission: Mission, tell: Callable[[dict[str, Any]], None]) -> int:
            number = len(self.missions())
            with self.seen.open("a") as file:
                file.write(json.dumps([mission.index, mission.again]) + "\n")
            return gateways[number](mission, tell)

        kernel_gateway.run_device = run_device  # type: ignore[assignment]
        common = CommonConfig(self.place.folder, "sqlite:x", self.place.folder)
        config = GatewayConfig(common, ("vm1",), ())
        wanted = Wanted(self.order, config, self.place, "", self._become_new)
        return supervise(wanted, self.states.append)

    def missions(self) -> list[list[Any]]:
        """Return [device, again] of each gateway that there was."""
        if not self.seen.exists():
            return []
        return [json.loads(line) for line in self.seen.read_text().splitlines()]

    def _become_new(self) -> None:
        raise SystemExit("a new program")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(tmp_path)
    monkeypatch.setattr(kernel_gateway, "run_device", kernel_gateway.run_device)
    monkeypatch.setattr(kernel_supervisor, "device_of_backend", lambda _backend: made.waiting)
    monkeypatch.setattr(
        kernel_supervisor.Supervisor, "_connected_devices", lambda _self: made.devices
    )
    monkeypatch.setattr(
        kernel_supervisor.Supervisor,
        "_disconnect",
        lambda _self, index: made.disconnected.append(index),
    )
    before = {number: signal.getsignal(number) for number in (15, 2, 1)}
    yield made
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def serves(mission: Mission, tell: Callable[[dict[str, Any]], None]) -> None:
    tell({"state": "attached", "device": f"/dev/nbd{mission.index}", "size_bytes": 5})


def detached(mission: Mission, tell: Callable[[dict[str, Any]], None]) -> int:
    """A gateway that serves until the kernel disconnects it."""
    serves(mission, tell)
    return Ending.DETACHED


def killed(mission: Mission, tell: Callable[[dict[str, Any]], None]) -> int:
    """A gateway that serves and is killed."""
    serves(mission, tell)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def ends(ending: int, code: str = "", *, served: bool = True) -> Gateway:
    """Return a gateway that ends so."""

    def gateway(mission: Mission, tell: Callable[[dict[str, Any]], None]) -> int:
        if served:
            serves(mission, tell)
        tell({"problem": f"because of {code}", "code": code, "hint": "do this"})
        return ending

    return gateway


def test_a_device_from_begin_to_end(stage: Stage) -> None:
    """The first free device; nothing is left afterwards."""
    assert stage.run(detached) == 0
    assert stage.missions() == [[1, False]]
    assert [one.state for one in stage.states][-2:] == ["attached", "ended"] or (
        stage.states[-1].state == "ended"
    )
    assert "attached" in {one.state for one in stage.states}
    assert stage.place.read() is None


def test_a_gateway_that_is_killed_is_followed_by_another(stage: Stage) -> None:
    """The next one finds the device waiting; what happened is in the state."""
    assert stage.run(killed, killed, detached) == 0
    assert stage.missions() == [[1, False], [1, True], [1, True]]
    assert any("was killed: SIGKILL" in one.problem for one in stage.states)
    assert any(one.state == "reconnecting" for one in stage.states)
    assert stage.states[-1].gateway_starts == 3
    assert stage.disconnected == []


def test_a_crash_is_no_end(stage: Stage) -> None:
    """An exit code of no meaning is a crash."""
    assert stage.run(ends(1), detached) == 0
    assert any("crashed: exit code 1" in one.problem for one in stage.states)


def test_a_first_gateway_that_fails_is_told(stage: Stage) -> None:
    """With its own error and hint, and nothing is left."""
    with pytest.raises(Busy, match="because of busy") as caught:
        stage.run(ends(Ending.AGAIN, "busy", served=False))
    assert caught.value.hint == "do this"
    assert stage.place.read() is None
    assert stage.disconnected == []


def test_what_may_pass_is_tried_again_once_it_served(stage: Stage) -> None:
    """No node just now: the kernel waits."""
    assert stage.run(detached_later := killed, ends(Ending.AGAIN, "unavailable", served=False),
                     detached) == 0  # fmt: skip
    assert detached_later is killed
    assert len(stage.missions()) == 3
    assert stage.disconnected == []


@pytest.mark.parametrize(
    ("ending", "code", "kind"),
    [(Ending.LOST, "fenced", Fenced), (Ending.REFUSED, "not-found", NotFound)],
)
def test_a_lost_volume_is_disconnected(
    stage: Stage, ending: int, code: str, kind: type[Exception]
) -> None:
    """Its users get errors rather than nothing; why is kept for whoever looks."""
    assert stage.run(killed, ends(ending, code, served=False)) == kind.exit_code  # type: ignore[attr-defined]
    assert stage.disconnected == [1]
    known = stage.place.read()
    assert known is not None
    assert (known.state, known.code) == ("failed", code)


def test_what_an_operator_can_mend_is_waited_for(stage: Stage) -> None:
    """A damaged log does not take the device away from its users."""
    assert stage.run(killed, ends(Ending.REFUSED, "corrupt", served=False), detached) == 0
    assert stage.disconnected == []


def test_after_the_time_nobody_waits_any_more(stage: Stage) -> None:
    """The kernel has given up by then; the time counts from the last gateway that served."""
    stage.order = AttachOrder("vm1", "torus:abc:0000000000000001", dead_timeout_s=0)
    again = ends(Ending.AGAIN, "unavailable", served=False)
    assert stage.run(killed, again) == Unavailable.exit_code
    assert stage.disconnected == [1]
    assert stage.states[-1].state == "failed"


def test_a_device_that_was_taken_meanwhile(stage: Stage) -> None:
    """The next free one is tried; one that was asked for by name is an error."""
    assert stage.run(ends(Ending.TAKEN, "busy", served=False), detached) == 0
    assert stage.missions() == [[1, False], [2, False]]
    stage.seen.unlink()
    stage.order = AttachOrder("vm1", "torus:abc:0000000000000001", index=2)
    with pytest.raises(Busy):
        stage.run(ends(Ending.TAKEN, "busy", served=False))


def test_a_device_that_waits_is_found(stage: Stage) -> None:
    """An attach after everything was killed goes on with the same device."""
    stage.waiting = 0
    assert stage.run(detached) == 0
    assert stage.missions() == [[0, True]]
    stage.order = AttachOrder("vm1", "torus:abc:0000000000000001", index=2)
    with pytest.raises(Busy, match="is /dev/nbd0 already"):
        stage.run(detached)


def test_a_restart_makes_this_process_new(stage: Stage) -> None:
    """After the gateway has ended in order; the device waits."""
    with pytest.raises(SystemExit, match="a new program"):
        stage.run(ends(Ending.RESTART))
    assert stage.states[-1].state == "restarting"
    assert stage.disconnected == []


def test_sigterm_reaches_the_gateway(stage: Stage) -> None:
    """And its end in order is the end."""

    def gateway(mission: Mission, tell: Callable[[dict[str, Any]], None]) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        serves(mission, tell)
        os.kill(os.getppid(), signal.SIGTERM)
        return Ending.DETACHED if signal.sigwait({signal.SIGTERM}) == signal.SIGTERM else 1

    assert stage.run(gateway) == 0
    assert stage.states[-1].state == "ended"


def test_a_device_left_behind(stage: Stage) -> None:
    """Told twice, the gateway leaves the device as it is: it waits for another attach."""
    assert stage.run(ends(Ending.LEFT)) == 0
    assert stage.disconnected == []

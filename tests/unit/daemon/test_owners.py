"""Whom a command asks: an owner that lives and can be asked, nobody, or it is refused."""

import dataclasses
from typing import Any

import pytest

from torus.clock import SystemClock
from torus.daemon import owners
from torus.daemon.owners import ask_owner, living_owner
from torus.errors import AlreadyExists, Busy, Interrupted, TimedOut, Unavailable
from torus.metadata.base import Put
from torus.metadata.keys import node_key
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Node, Owner
from torus.volume.catalog import Catalog
from torus.volume.owner import this_process

ME = this_process("node", "", SystemClock(), control="/ctl")


@pytest.fixture
def catalog() -> Catalog:
    """Give a catalog with the volume 'disk'."""
    catalog = Catalog(MemoryMetadata(), SystemClock())
    catalog.create("disk", 1 << 20)
    return catalog


def own(catalog: Catalog, owner: Owner) -> None:
    """Let ``owner`` attach the volume."""
    catalog.acquire(catalog.get("disk").spec.volume, owner, takeover=True)


def release(catalog: Catalog) -> None:
    """Let the owner give it back."""
    found = catalog.get("disk")
    catalog.release(found.spec.volume, found.head, found.head_revision)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give the list of what the owner answers: a result, an error, or something to call."""
    found: list[Any] = []

    def run(path: str, *_: Any, **__: Any) -> Any:
        assert path == "/ctl"
        answer = found.pop(0)
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(owners, "run_task", run)
    monkeypatch.setattr(owners, "_LOOK_AGAIN_S", 0)
    return found


def test_dead_owner_is_nobody(catalog: Catalog) -> None:
    """One that has ended, or none at all."""
    assert living_owner(catalog.get("disk")) is None
    own(catalog, dataclasses.replace(ME, pid_start=ME.pid_start + 1))
    assert living_owner(catalog.get("disk")) is None
    own(catalog, ME)
    assert living_owner(catalog.get("disk")) == ME


@pytest.mark.parametrize(
    ("owner", "hint"),
    [
        (dataclasses.replace(ME, control="", role="import"), "wait until it has ended"),
        (dataclasses.replace(ME, host="elsewhere"), "repeat this on elsewhere"),
    ],
)
def test_owner_that_cannot_be_asked_is_named(catalog: Catalog, owner: Owner, hint: str) -> None:
    """A command that has the volume, and a process of another host."""
    own(catalog, owner)
    with pytest.raises(Busy, match=f"attached by {owner.role} pid {owner.pid} on") as caught:
        living_owner(catalog.get("disk"))

    assert caught.value.hint == hint


def test_owner_is_asked(catalog: Catalog, answers: list[Any]) -> None:
    """Its result, or its error; nobody is asked when nobody has it."""
    assert ask_owner(catalog, "disk", "gc") is None
    own(catalog, ME)
    answers.append({"attached": True, "x": 1})
    assert ask_owner(catalog, "disk", "gc") == {"attached": True, "x": 1}
    for error in (AlreadyExists("there"), TimedOut("slow")):
        answers.append(error)
        with pytest.raises(type(error)):
            ask_owner(catalog, "disk", "snapshot")
    assert answers == []


def test_owner_that_begins_or_ends_is_waited_for(catalog: Catalog, answers: list[Any]) -> None:
    """One whose socket is not there, and one that let the volume go, are looked at again."""
    own(catalog, ME)
    answers += [Unavailable("no socket"), {"attached": False}, {"attached": True}]
    assert ask_owner(catalog, "disk", "gc") == {"attached": True}

    def go() -> dict[str, bool]:
        release(catalog)
        return {"attached": False}

    answers.append(go)
    assert ask_owner(catalog, "disk", "gc") is None


def test_patience_ends(
    catalog: Catalog, answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the last look said."""
    monkeypatch.setattr(owners, "_PATIENCE_S", -1)
    own(catalog, ME)
    answers += [Unavailable("no socket"), {"attached": False}]
    with pytest.raises(Unavailable, match="no socket"):
        ask_owner(catalog, "disk", "gc")
    with pytest.raises(Busy, match="is changing hands"):
        ask_owner(catalog, "disk", "gc")


@pytest.mark.parametrize(("cancel", "said"), [(True, "was cancelled"), (False, "goes on in node")])
def test_interruption_says_what_becomes_of_the_task(
    catalog: Catalog, answers: list[Any], cancel: bool, said: str
) -> None:
    """It ends with the command, or goes on without it."""
    own(catalog, ME)
    answers.append(KeyboardInterrupt())
    with pytest.raises(Interrupted, match=said):
        ask_owner(catalog, "disk", "flatten", cancel=cancel)


def test_node_attaches_what_nobody_has(answers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of this machine, if it lives; it is told to attach the volume."""
    store = MemoryMetadata()
    catalog = Catalog(store, SystemClock())
    catalog.create("disk", 1 << 20)
    asked: list[Any] = []

    def run(path: str, task: str, volume: str, arguments: Any, *_: Any, **__: Any) -> Any:
        asked.append((path, task, volume, arguments))
        return {"attached": True}

    monkeypatch.setattr(owners, "run_task", run)
    node = Node(
        "n", ME.host, ME.machine_boot_id, ME.pid, ME.pid_start, (), "unix:/peer", (), "", 1, 1
    )
    for host, start in (("elsewhere", ME.pid_start), (ME.host, ME.pid_start + 1)):
        other = dataclasses.replace(node, host=host, pid_start=start)
        store.commit((), (Put(node_key("n"), other.to_bytes()),))
        assert ask_owner(catalog, "disk", "gc", {"x": 1}, store=store) is None
    store.commit((), (Put(node_key("n"), node.to_bytes()),))
    assert ask_owner(catalog, "disk", "gc", {"x": 1}) is None
    assert ask_owner(catalog, "disk", "gc", {"x": 1}, store=store) == {"attached": True}
    own(catalog, ME)
    ask_owner(catalog, "disk", "gc", {"x": 1}, store=store)

    assert asked == [
        ("/peer.ctl", "gc", "disk", {"attach": True, "x": 1}),
        ("/ctl", "gc", "disk", {"x": 1}),
    ]

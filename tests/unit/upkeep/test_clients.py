"""What moves gives way to clients that feel it; what lacks copies does not."""

import json
import random
from collections import Counter
from typing import Any

import pytest

from tests.unit.cluster.replicas import let_pass
from tests.unit.upkeep.town import Town, run
from torus.errors import RemoteProtocolError
from torus.testing.clock import ManualClock
from torus.testing.simdisk import SMALL
from torus.testing.simloop import SimClock, SimLoop
from torus.upkeep.budget import MOVING_SHARE_MIN
from torus.upkeep.clients import ClientsSaid, Word, clients_question, read_question, read_word
from torus.upkeep.node import NodeUpkeep

DISKS = [letter * 32 for letter in "abcd"]
RATE_BYTES = 50 * SMALL.slot_bytes
S = 1_000_000_000


def test_a_word_counts_for_a_while() -> None:
    clock = ManualClock()
    said = ClientsSaid(clock)
    assert said.word == (None, 0.0)
    said.hear("one", Word(True, 0.0))
    said.hear("two", Word(False, 0.0))
    said.hear("three", Word(None, 0.5))
    assert said.word == (True, 0.5), "the worst of what was said"
    clock.advance(S)
    said.hear("two", Word(False, 0.0))
    clock.advance(S)
    assert said.word == (False, 0.0)
    clock.advance(S)
    assert said.word == (None, 0.0)


def test_a_word_replaces_what_the_same_one_said() -> None:
    said = ClientsSaid(ManualClock())
    said.hear("one", Word(True, 0.5))
    said.hear("one", Word(False, 0.25))
    assert said.word == (False, 0.25)


@pytest.mark.parametrize("word", [Word(None, 0.0), Word(True, 0.25), Word(False, 1)])
def test_words_travel(word: Word) -> None:
    asked = json.loads(clients_question("me", word))
    assert read_question(asked) == ("me", word)
    assert read_word(json.dumps(word._asdict()).encode()) == word


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b'{"hurt": 1, "share": 0}', b'{"hurt": null, "share": "x"}', b"{}"]
)
def test_what_is_no_word_is_refused(answer: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_word(answer)


def test_a_question_of_nobody_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        read_question({"ask": "clients", "hurt": None, "share": 0.0})


def test_a_node_passes_on_what_owners_said_to_it_and_nothing_else() -> None:
    """What it heard from nodes that it pulls from must not come back to those for ever."""
    node = NodeUpkeep(ManualClock())
    assert node.clients_hurt() is None
    node.far_clients.hear("0", Word(True, 0.0))
    assert node.clients_hurt() is True
    assert node.hear("puller", Word(None, 0.5)) == Word(None, 0.5)
    assert node.hear("owner", Word(False, 0.0)) == Word(False, 0.5)
    assert node.hear("other", Word(True, 0.0)).hurt is True


async def _took_s(loop: SimLoop, *, hurt: bool | None) -> tuple[float, float]:
    """Let a disk join; return how long it took until it had its chunks, and its last share."""
    town = Town(3, DISKS[:3], clock=SimClock(loop), rate_bytes=RATE_BYTES)
    town.clients_hurt = hurt
    await town.write(await town.volume(2), 60)
    for house in town.houses.values():
        house.upkeep.start()
    await let_pass(20)
    new = town.add(DISKS[3])
    new.upkeep.start()
    town.set_ring(DISKS)
    began, share = loop.time(), 0.0
    while not new.upkeep.settled():
        await let_pass(0.05)
        share = new.upkeep.moving_share() or share
        assert loop.time() - began < 600
    took_s = loop.time() - began
    for house in town.houses.values():
        await house.upkeep.close()
    return took_s, share


def _run(*, hurt: bool | None) -> tuple[float, float]:
    loop = SimLoop(random.Random(5))
    try:
        return loop.run_until_complete(_took_s(loop, hurt=hurt))
    finally:
        loop.close()


def test_what_moves_is_slowed_down_by_clients_that_feel_it() -> None:
    alone_s, whole = _run(hurt=None)
    hurt_s, least = _run(hurt=True)
    assert (whole, least) == (1.0, MOVING_SHARE_MIN)
    assert hurt_s > 4 * alone_s, f"{alone_s:.2f} s without clients, {hurt_s:.2f} s beside them"


@pytest.mark.parametrize("lost", [False, True])
def test_only_what_moves_is_slowed_down(lost: bool) -> None:
    """A disk that joins pulls at its share; those that replace a lost copy do not wait."""

    async def scenario() -> None:
        town = Town(1, DISKS)
        await town.write(await town.volume(2), 40)
        await town.rounds()
        steps: Counter[bool] = Counter()
        houses = list(town.houses.values())[1:]
        for house in houses:
            turn = house.pace.turn

            async def counted(
                count: int, operations: int = 1, *, moving: bool = False, turn: Any = turn
            ) -> None:
                steps[moving] += count
                await turn(count, operations, moving=moving)

            house.pace.turn = counted  # type: ignore[method-assign]
        if lost:
            town.view.set_down(DISKS[0])
            town.set_ring(DISKS[1:])
            await town.rounds()
        else:
            town.set_ring(DISKS[1:])
            for house in houses:
                await house.upkeep.round()
        pulled = sum(house.upkeep.progress.pulled_bytes for house in houses)
        assert pulled > 0
        assert steps[not lost] == pulled
        assert steps[lost] == 0

    run(scenario)

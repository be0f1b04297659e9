"""Rules of upkeep, scrub and shards, each taken out of the real code by a patch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

from tests.sim.patches import Patch, replace
from torus.ids import ChunkId
from torus.redundancy.scheme import Scheme, erasure, replica
from torus.testing.simshards import ShardCluster
from torus.testing.simvolume import Writer
from torus.upkeep import plan, shard_plan, shard_survey, survey
from torus.upkeep.disk import DiskUpkeep
from torus.upkeep.giveup import GiveUp
from torus.upkeep.peers import ABSENT, GOOD, Confirmed, Copy
from torus.upkeep.plan import Closed, Log, closed_spans
from torus.upkeep.scrub import DiskScrub
from torus.upkeep.shard_giveup import ShardGiveUp
from torus.upkeep.shard_survey import ShardSurvey


class SmallShards(ShardCluster):
    """One volume on few nodes, where trouble of a few kinds meets soon."""

    first = (erasure(2, 1),)
    kinds: ClassVar[dict[str, float]] = {}

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.converts = "convert" in self.kinds
        self.faults_per_s, self.trouble_s, self.quiet_s = 8.0, 2.0, 25.0

    def start_writer(self, name: str, machine: str | None = None) -> Writer:
        """Let another process take a volume over, which writes much."""
        writer = super().start_writer(name, machine)
        writer.idle_s = 0.02
        return writer

    def wanted_volumes(self) -> int:
        """Return 1."""
        return 1

    def trouble_kinds(self) -> dict[str, float]:
        """Return the kinds of this cluster."""
        return self.kinds


class Rotting(SmallShards):
    """Bits turn everywhere, while chunks become shards."""

    kinds: ClassVar[dict[str, float]] = {"rot": 8, "writer": 2, "convert": 1, "kill": 1}


class Turning(SmallShards):
    """The redundancy and the ring change all the time."""

    kinds: ClassVar[dict[str, float]] = {"convert": 5, "ring": 4, "writer": 2, "kill": 1}


class Flipping(SmallShards):
    """Single copies go there and back with the ring, of which everybody has another picture."""

    first = (replica(1),)
    kinds: ClassVar[dict[str, float]] = {"ring": 8, "writer": 1}

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.authority.late_s = 0.0, 0.2, 0.6

    def wanted_nodes(self) -> int:
        """Return 4."""
        return 4


class Shrinking(SmallShards):
    """The ring has too few nodes for all shards, again and again."""

    first = (erasure(2, 2),)
    kinds: ClassVar[dict[str, float]] = {"ring": 5, "writer": 3}

    def wanted_nodes(self) -> int:
        """Return 4."""
        return 4


class Recutting(Shrinking):
    """Volumes are cut anew, into other shards."""

    kinds: ClassVar[dict[str, float]] = {"convert": 5, "writer": 2}

    def _some_scheme(self) -> Scheme:
        return self.rng.choice((erasure(2, 1), erasure(2, 2)))


class Darkness(SmallShards):
    """The power goes here and there, and writers die."""

    kinds: ClassVar[dict[str, float]] = {"power": 4, "writer": 3, "ring": 2, "kill": 1, "cut": 1}


class Forgetful(set[ChunkId]):
    """Marks that nobody sees."""

    def update(self, *_: object) -> None:
        """Forget them."""


def no_marks(stack: ExitStack) -> None:
    """Who gives a part up tells others all the same that it has it."""
    made = GiveUp.__init__

    def make(self: GiveUp, *arguments: Any) -> None:
        made(self, *arguments)
        self.leaving = Forgetful()

    replace(stack, GiveUp, "__init__", make)


def not_compared(stack: ExitStack) -> None:
    """A whole copy goes though nobody compared the shards with it."""

    async def may_go(self: ShardGiveUp, one: Any, sound: Sequence[Confirmed]) -> bool:
        return True

    replace(stack, ShardGiveUp, "_whole_may_go", may_go)


def not_asked(stack: ExitStack) -> None:
    """A part goes when lists say that the others are there; nobody is asked."""

    async def may_go(self: ShardGiveUp, one: Any, placement: Any, answers: Any) -> bool:
        return bool(one.todo.ready)

    replace(stack, ShardGiveUp, "_may_go", may_go)


def some_are_enough(stack: ExitStack) -> None:
    """A part goes when those who answered have theirs: silence is consent."""
    ask = GiveUp.ask

    async def hopeful(self: GiveUp, asked: Mapping[str, list[Copy]]) -> Any:
        found = await ask(self, asked)
        sound = {key[1]: answer for key, answer in found.items() if answer.state == GOOD}
        like = next(iter(sound.values()), None)
        for disk, copies in asked.items():
            for copy in copies:
                answer = found.get((disk, copy.chunk))
                if like is not None and (answer is None or answer.state == ABSENT):
                    found[disk, copy.chunk] = sound.get(copy.chunk, like)
        return found

    replace(stack, GiveUp, "ask", hopeful)
    not_compared(stack)


def any_witness(stack: ExitStack) -> None:
    """Any disk that has not a chunk proves that it was deleted."""

    def witness(*_: object) -> bool:
        return True

    for module in (plan, survey, shard_survey, shard_plan):
        replace(stack, module, "may_witness", witness)


def before_settled(stack: ExitStack) -> None:
    """Chunks become shards while a takeover may still read them."""

    def settled(log: Log) -> Iterator[Closed]:
        yield from closed_spans(log)
        for span in log.spans:
            if span.last is None:
                last = max(log.replay - 1, span.first) + 3
                yield Closed(span, last, frozenset(), span.ring)

    replace(stack, shard_survey, "settled_spans", settled)


def foreign_as_own(stack: ExitStack) -> None:
    """A shard of a former K+M is taken for the one of the same number."""

    async def none(self: ShardSurvey, wanted: Log, here: Any) -> dict[ChunkId, set[int | None]]:
        return {}

    replace(stack, ShardSurvey, "_foreign", none)


def former_forgotten(stack: ExitStack) -> None:
    """A volume that was converted is looked at no more."""
    volume = ShardSurvey.volume

    async def once(self: ShardSurvey, picture: Any, wanted: Log) -> Any:
        if wanted.former:
            return shard_survey.Found()
        return await volume(self, picture, wanted)

    replace(stack, ShardSurvey, "volume", once)


def scrub_blind(stack: ExitStack) -> None:
    """A scrub looks at headers alone."""
    look = DiskScrub.look

    async def shallow(self: DiskScrub, part: ChunkId, *, deep: bool) -> None:
        await look(self, part, deep=False)

    replace(stack, DiskScrub, "look", shallow)


def doubts_dropped(stack: ExitStack) -> None:
    """A part that was found damaged is not compared with the others'."""

    def nothing(self: DiskUpkeep, part: ChunkId) -> None:
        return

    replace(stack, DiskUpkeep, "doubt", nothing)


def too_few_owners(stack: ExitStack) -> None:
    """Whole copies go though there are too few nodes for all shards."""

    def goal(log: Log, chunk: ChunkId, placement: Any, long: Any) -> shard_plan.Goal:
        shards = log.scheme.erasure and chunk not in long
        return shard_plan.Goal.SHARDS if shards else shard_plan.Goal.COPIES

    replace(stack, shard_survey, "goal", goal)
    replace(stack, shard_plan, "goal", goal)


SHARD_MUTANTS: dict[str, tuple[Patch, int, type[ShardCluster]]] = {
    "no_marks": (no_marks, 37, Flipping),
    "not_asked": (not_asked, 17, Rotting),
    "some_are_enough": (some_are_enough, 8, Turning),
    "any_witness": (any_witness, 0, Darkness),
    "before_settled": (before_settled, 0, Turning),
    "foreign_as_own": (foreign_as_own, 0, Recutting),
    "former_forgotten": (former_forgotten, 0, Turning),
    "scrub_blind": (scrub_blind, 3, Rotting),
    "doubts_dropped": (doubts_dropped, 3, Rotting),
    "too_few_owners": (too_few_owners, 0, Shrinking),
}
"""Each rule with the first seed that is known to find its absence, in which kind of cluster."""

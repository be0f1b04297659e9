"""`torus gc`: the collection of garbage that somebody asked for, volume by volume.

Decides who collects, the volume's owner or this process, and how the outcome is told.  What is
garbage, and what is worth moving, is decided in `torus.volume.collect_plan`.

The event loop is imported only where a volume is attached here.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torus import limits
from torus.config import CommonConfig
from torus.daemon.owners import ask_owner
from torus.errors import UsageError
from torus.metadata.base import MetadataStore
from torus.volume.catalog import Catalog

if TYPE_CHECKING:
    from torus.volume.attachment import Attachment

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; ``target`` is the utilisation of the log, more than 0, at most 1."""

    target: float = limits.GC_TARGET_PERCENT / 100
    dry_run: bool = False
    defragment: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done to a volume, or with a dry run, what would be."""

    chunks_before: int = 0
    chunks_after: int = 0
    utilisation_before: float = 1.0
    utilisation_after: float = 1.0
    victims: int = 0
    moved_bytes: int = 0
    freed_bytes: int = 0
    problem: str = ""  # why it ended early


def collect(
    catalog: Catalog,
    config: CommonConfig,
    name: str,
    wanted: Wanted,
    report: Report,
    store: MetadataStore | None = None,
) -> Outcome:
    """Collect a volume's garbage: its owner does, or this process attaches it for that.

    ``store`` as in `ask_owner`.

    Raises: NotFound, Busy, Corruption, Unavailable, DiskFailed and what attaching raises.
    """
    if not catalog.get(name).head.spans:
        return Outcome()  # nothing was ever written
    answer = ask_owner(catalog, name, "gc", asdict(wanted), report, store=store)
    if answer is not None:
        return Outcome(**answer["outcome"])
    from torus.daemon.command import run_command

    return run_command(config, _attach_and_collect(config, name, wanted, report))


async def _attach_and_collect(
    config: CommonConfig, name: str, wanted: Wanted, report: Report
) -> Outcome:
    from torus.daemon.reach import attached, reach, volume_options

    async with reach(config) as reached:
        async with attached(reached, name, "gc", volume_options(config)) as attachment:
            return await collect_attached(attachment, wanted, report)


async def collect_attached(attachment: "Attachment", wanted: Wanted, report: Report) -> Outcome:
    """Collect the garbage of a volume that this process has attached.

    Raises: the volume's failure.
    """
    core, collector = attachment.volume.core, attachment.volume.collector
    slot_bytes = core.chunks.slot_bytes
    if wanted.dry_run:
        plan = collector.dry_run(wanted.target)
        chunks = len(core.blocks.usage.counts())
        freed_bytes = plan.freed_units * limits.SECTOR_BYTES
        return Outcome(
            chunks_before=chunks,
            chunks_after=chunks - freed_bytes // slot_bytes,
            utilisation_before=plan.utilisation,
            utilisation_after=plan.reached,
            victims=len(plan.victims),
            moved_bytes=plan.live_units * limits.SECTOR_BYTES,
            freed_bytes=freed_bytes,
        )
    if wanted.defragment:
        done = await collector.defragment(progress=report)
    else:
        done = await collector.collect(target=wanted.target, progress=report)
    return Outcome(
        chunks_before=done.chunks_before,
        chunks_after=done.chunks_after,
        utilisation_before=done.utilisation_before,
        utilisation_after=done.utilisation_after,
        victims=done.victims,
        moved_bytes=done.moved_bytes,
        freed_bytes=(done.chunks_before - done.chunks_after) * slot_bytes,
        problem=done.problem,
    )


def wanted_from(question: dict[str, Any]) -> Wanted:
    """Return what a question at the control socket asks for.

    Raises: UsageError.
    """
    target = question.get("target", Wanted().target)
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target <= 1:
        raise UsageError(f"the target {target!r} is no utilisation between 0 and 1")
    return Wanted(
        target=float(target),
        dry_run=question.get("dry_run") is True,
        defragment=question.get("defragment") is True,
    )

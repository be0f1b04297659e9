"""What an attached volume's log takes and costs, for people.

Implements docs/operations.md, "Space".
"""

from typing import Any

from torus.cli.sizes import format_size
from torus.errors import TorusError
from torus.metadata.schema import Owner
from torus.volume.owner import is_alive


def ask_space(owner: Owner | None, volume: int) -> dict[str, Any] | None:
    """Return what the process that has a volume attached says of it; None when none can be asked.

    It is `torus.daemon.reports.AttachedVolume` as a dictionary.
    """
    if owner is None or not owner.control or not is_alive(owner):
        return None
    from torus.node.control import ask

    try:
        status = ask(owner.control, {"ask": "status"})
    except TorusError:
        return None  # the command shows what the metadata knows
    found = (one for one in status.get("volumes", ()) if one.get("volume") == volume)
    return next(found, None)


def space_text(attached: dict[str, Any]) -> str:
    """Return the figures in one line."""
    return ", ".join(f"{text} {what}" for what, text in space_lines(attached) if text)


def space_lines(attached: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures as (what, text)."""
    space = attached["space"]
    return [
        ("logical", format_size(space["logical_bytes"])),
        ("live", format_size(space["live_bytes"])),
        ("dead", format_size(space["dead_bytes"])),
        ("pinned", format_size(space["pinned_bytes"])),
        ("write amplification", _ratio(attached["write_amplification"])),
        ("of it collection", _ratio(attached["collector_amplification"])),
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def space_document(
    attached: dict[str, Any] | None, mapped_bytes: int, snapshots: int
) -> dict[str, Any]:
    """Return the figures as JSON; null for what only the process knows that has it attached."""
    if attached is not None:
        known = ("write_amplification", "collector_amplification")
        return {**attached["space"], **{name: attached[name] for name in known}}
    return {
        "logical_bytes": mapped_bytes,
        "live_bytes": None,
        "dead_bytes": None,
        "pinned_bytes": None,
        "snapshots": snapshots,
        "client_bytes": None,
        "log_bytes": None,
        "collected_bytes": None,
        "write_amplification": None,
        "collector_amplification": None,
    }


def space_fields(attached: dict[str, Any] | None, snapshots: int) -> list[tuple[str, str]]:
    """Return the lines of `torus volume info`."""
    if attached is None:
        return [
            ("snapshots", str(snapshots)),
            ("space", "live, dead and pinned are known while it is attached"),
        ]
    return [
        ("snapshots", str(attached["space"]["snapshots"])),
        ("space", space_text(attached)),
    ]

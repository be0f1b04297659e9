"""Moments as people and programs read them."""

from datetime import UTC, datetime


def iso_instant(wall_ns: int) -> str:
    """Return nanoseconds since 1970 as ISO 8601 in UTC, to the second."""
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

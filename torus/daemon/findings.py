"""What an offline check finds, gathered within a bound.

Decides that a thing is reported once, and how many things are listed one by one.
"""

from torus.daemon.reports import Finding

FINDINGS_MAX = 1000


class Findings:
    """Findings in the order in which they were made; at most ``FINDINGS_MAX`` are kept."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Finding] = {}
        self._dropped = {"error": 0, "warning": 0}

    def error(self, kind: str, where: str, message: str) -> None:
        """Note that data is wrong or missing."""
        self._add(Finding("error", kind, where, message))

    def warning(self, kind: str, where: str, message: str) -> None:
        """Note what is odd where nothing is lost."""
        self._add(Finding("warning", kind, where, message))

    def _add(self, finding: Finding) -> None:
        key = (finding.kind, finding.where)
        if key in self._kept:
            return
        if len(self._kept) >= FINDINGS_MAX:
            self._dropped[finding.severity] += 1
            return
        self._kept[key] = finding

    @property
    def count(self) -> int:
        """How many were made, those that are not kept too."""
        return len(self._kept) + sum(self._dropped.values())

    def to_tuple(self) -> tuple[Finding, ...]:
        """Return what was kept, and one finding for each severity of which some were not."""
        more = [
            Finding(severity, "more", "-", f"{count} more are not listed")
            for severity, count in self._dropped.items()
            if count
        ]
        return (*self._kept.values(), *more)

"""Sizes and times as people write them.

Decides what `10GiB`, `512M` and `90s` mean, and how sizes are shown.  It does not decide which
sizes a volume or a disk may have.

Implements docs/cli.md, "Sizes and times".
"""

import re

from torus.errors import UsageError

_FACTORS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{unit: 1024**power for power, unit in enumerate("kmgtp", 1)},
    **{unit + "ib": 1024**power for power, unit in enumerate("kmgtp", 1)},
    **{unit + "b": 1000**power for power, unit in enumerate("kmgtp", 1)},
}
_SIZE = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))? ?([A-Za-z]*)")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)")
_TEXT_MAX = 40  # longer than any size that can be meant; int() of endless digits is slow
_BYTES_MAX = (1 << 63) - 1  # what a file offset can hold
_HINT = "write a size such as 10GiB, 512M (= MiB), 10GB (= 10^9 bytes) or 4096"


def parse_size(text: str, what: str = "size") -> int:
    """Return the bytes that ``text`` means; K, M, G, T, P are powers of 1024 as KiB is.

    Raises: UsageError naming ``what`` and the text when it is no size, zero, negative, a
    fraction of a byte or more than a file can hold.
    """
    shown = repr(text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "...")
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _TEXT_MAX else None
    if match is None:
        raise UsageError(f"{what} {shown} is not a size", hint=_HINT)
    sign, whole, fraction, unit = match.groups()
    factor = _FACTORS.get(unit.lower())
    if factor is None:
        raise UsageError(f"{what} {shown} has the unknown unit {unit!r}", hint=_HINT)
    scale: int = 10 ** len(fraction or "")
    value, rest = divmod(int(whole + (fraction or "")) * factor, scale)
    if value == rest == 0:
        raise UsageError(f"{what} {shown} is zero; it must be at least 1 byte", hint=_HINT)
    if sign:
        raise UsageError(f"{what} {shown} is negative", hint=_HINT)
    if rest:
        raise UsageError(f"{what} {shown} is not a whole number of bytes", hint=_HINT)
    if value > _BYTES_MAX:
        raise UsageError(f"{what} {shown} is more than {format_size(_BYTES_MAX + 1)}", hint=_HINT)
    return value


def format_size(size_bytes: int) -> str:
    """Return a size for people: whole where it is whole, else three digits, in binary units."""
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        # 1023.95 would be shown as 1024.0 of this unit; the next one is meant then
        if abs(value) < 1023.95 or unit == "PiB":
            break
    shown = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{shown.rstrip('0').rstrip('.')} {unit}"


def parse_seconds(text: str, what: str = "time") -> float:
    """Return the seconds that ``text`` means: `60`, `60s`, `500ms`, `5m`, `1h`.

    Raises: UsageError when it is no time, or zero.
    """
    hint = "write a time such as 500ms, 60s, 5m or 1h"
    match = _TIME.fullmatch(text.strip().lower()) if len(text) <= _TEXT_MAX else None
    factor = _SECONDS.get(match.group(2)) if match else None
    if match is None or factor is None:
        raise UsageError(f"{what} {text[:_TEXT_MAX]!r} is not a time", hint=hint)
    seconds = float(match.group(1)) * factor
    if seconds <= 0:
        raise UsageError(f"{what} {text!r} is zero", hint=hint)
    return seconds


def format_seconds(seconds: float) -> str:
    """Return a time for people: `0.4 s`, `12 s`, `3:05`, `2:03:04`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

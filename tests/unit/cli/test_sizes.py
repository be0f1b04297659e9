"""Sizes and times are read as documented, and refused with a message that says why."""

import random

import pytest

from torus.cli.sizes import format_seconds, format_size, parse_seconds, parse_size
from torus.errors import UsageError

GOOD_SIZES = {
    "4096": 4096,
    "1": 1,
    "4096B": 4096,
    "512M": 512 << 20,
    "512MiB": 512 << 20,
    "512mib": 512 << 20,
    "10G": 10 << 30,
    "10GiB": 10 << 30,
    "10 GiB": 10 << 30,
    " 10GiB ": 10 << 30,
    "10GB": 10**10,
    "64TiB": 64 << 40,
    "1.5TiB": 3 << 39,
    "0.5K": 512,
    "1.50GB": 1_500_000_000,
    "007K": 7 << 10,
    "1PiB": 1 << 50,
}
BAD_SIZES = {
    "0": "size '0' is zero",
    "-0": "size '-0' is zero",
    "0GiB": "size '0GiB' is zero",
    "-1": "size '-1' is negative",
    "-5GiB": "size '-5GiB' is negative",
    "": "size '' is not a size",
    "ten": "size 'ten' is not a size",
    "10XB": "size '10XB' has the unknown unit 'XB'",
    "10Gi": "size '10Gi' has the unknown unit 'Gi'",
    "1.5": "size '1.5' is not a whole number of bytes",
    "0.1KiB": "size '0.1KiB' is not a whole number of bytes",
    "1e9": "size '1e9' is not a size",
    "0x10": "size '0x10' is not a size",
    "1_000": "size '1_000' is not a size",
    "10  GiB": "size '10  GiB' is not a size",
    "+5": "size '+5' is not a size",
    ".5G": "size '.5G' is not a size",
    "nan": "size 'nan' is not a size",
    "٣": "size '٣' is not a size",
    "8192P": "size '8192P' is more than 8192 PiB",
    "9" * 5000: f"size '{'9' * 40}...' is not a size",
}


@pytest.mark.parametrize("text", GOOD_SIZES)
def test_size_that_can_be_meant_is_its_bytes(text: str) -> None:
    """Every documented way of writing a size is understood."""
    assert GOOD_SIZES[text] == parse_size(text)


@pytest.mark.parametrize("text", BAD_SIZES)
def test_size_that_cannot_be_meant_is_refused(text: str) -> None:
    """The message names the text and the reason; the hint shows how to write a size."""
    with pytest.raises(UsageError) as caught:
        parse_size(text)

    assert caught.value.message.startswith(BAD_SIZES[text])
    assert caught.value.hint is not None


def test_size_shown_and_read_again_is_close() -> None:
    """What is shown is a size that means nearly the same; exactly where it is whole."""
    seed = 7
    chosen = random.Random(seed)
    for _ in range(2000):
        size_bytes = chosen.randrange(1, 1 << chosen.randrange(1, 56))
        again = parse_size(format_size(size_bytes)) if size_bytes < 1024 else None
        if again is not None:
            assert again == size_bytes, f"seed {seed}"
    for power in range(10, 60):
        assert 1 << power == parse_size(format_size(1 << power))


def test_size_just_below_a_unit_is_shown_in_the_next() -> None:
    """1024.0 MiB is never shown."""
    assert format_size((1 << 30) - 1) == "1 GiB"
    assert format_size(1023) == "1023 B"
    assert format_size(1536) == "1.5 KiB"
    assert format_size(0) == "0 B"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60", 60), ("60s", 60), ("500ms", 0.5), ("5m", 300), ("1h", 3600), ("1.5 min", 90)],
)
def test_time_that_can_be_meant_is_its_seconds(text: str, seconds: float) -> None:
    """Every documented way of writing a time is understood."""
    assert seconds == parse_seconds(text)


@pytest.mark.parametrize("text", ["", "0", "-1s", "5d", "soon", "1e3", "9" * 100])
def test_time_that_cannot_be_meant_is_refused(text: str) -> None:
    """A wrong time is a usage error with a hint."""
    with pytest.raises(UsageError) as caught:
        parse_seconds(text)

    assert caught.value.hint is not None


def test_time_is_shown_as_people_say_it() -> None:
    """Seconds, then minutes and seconds, then hours."""
    assert [format_seconds(s) for s in (0.44, 12.4, 59.6, 185, 7384)] == [
        "0.4 s",
        "12 s",
        "1:00",
        "3:05",
        "2:03:04",
    ]

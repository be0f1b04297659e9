"""What may be asked for as a redundancy, and what it means in copies, shards and disks."""

import pytest

from torus.errors import UsageError
from torus.redundancy.scheme import Scheme, erasure, parse, replica

ALL = [
    *(replica(copies) for copies in range(1, 9)),
    *(erasure(data, parity) for data in range(2, 17) for parity in range(1, 7)),
]


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_every_scheme_is_parsed_from_its_name(scheme: Scheme) -> None:
    """What is stored as text comes back as it was."""
    assert parse(str(scheme)) == scheme


def test_all_names_are_distinct() -> None:
    assert len({str(scheme) for scheme in ALL}) == len(ALL) == 8 + 15 * 6


@pytest.mark.parametrize(
    "text",
    [
        "", "replica", "replica:", "replica:0", "replica:9", "replica:-1", "replica:3 ",
        "erasure", "erasure:", "erasure:4", "erasure:4+", "erasure:+2", "erasure:4+2+1",
        "erasure:1+2", "erasure:17+2", "erasure:4+0", "erasure:4+7", "erasure:4-2",
        "erasure: 4+2", "erasure:4+2\n", "Erasure:4+2", "erasure:9999+2", "erasure:\u0664+2",
        "raid5",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_can_be_had(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be had") as refused:
        parse(text)

    hint = refused.value.hint or ""
    assert "N from 1 to 8" in hint
    assert "K from 2 to 16" in hint
    assert "M from 1 to 6" in hint


@pytest.mark.parametrize(
    ("text", "copies", "shards", "disks", "losses", "least"),
    [
        ("replica:1", 1, 0, 1, 0, 1),
        ("replica:2", 2, 0, 2, 1, 1),
        ("replica:3", 3, 0, 3, 2, 2),
        ("erasure:2+1", 2, 3, 3, 1, 1),
        ("erasure:4+2", 3, 6, 6, 2, 2),
        ("erasure:2+6", 7, 8, 8, 6, 6),
        ("erasure:16+6", 7, 22, 22, 6, 6),
    ],
)
def test_a_scheme_says_what_it_needs_and_bears(
    text: str, copies: int, shards: int, disks: int, losses: int, least: int
) -> None:
    """An open chunk in copies bears as many losses as the sealed one in shards."""
    scheme = parse(text)

    assert scheme.erasure is (shards > 0)
    assert (scheme.copies, scheme.shards, scheme.disks_needed) == (copies, shards, disks)
    assert (scheme.losses, scheme.default_min_copies) == (losses, least)


def test_copies_and_shards_that_bear_unequal_losses_are_a_mistake() -> None:
    with pytest.raises(AssertionError):
        Scheme(2, data=4, parity=2)


@pytest.mark.parametrize("text", ["replica:3", "erasure:4+2"])
def test_the_least_copies_are_between_one_and_all(text: str) -> None:
    scheme = parse(text)

    assert [scheme.check_min_copies(count) for count in (1, 2, 3)] == [1, 2, 3]
    for count in (-1, 0, 4):
        with pytest.raises(UsageError, match="keeps 3"):
            scheme.check_min_copies(count)

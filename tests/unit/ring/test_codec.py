"""A ring's bytes: the same for ever, and nothing else is taken for a ring."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torus.errors import Corruption, UnknownVersion
from torus.ring.builder import first_ring, next_ring
from torus.ring.codec import pack, unpack
from torus.ring.imagined import imagined_members
from torus.ring.member import RingMember

GOLDEN = first_ring(imagined_members(7, 3, [1, 2, 4], disks=2))
PACKED = pack(GOLDEN)


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def test_bytes_come_back() -> None:
    """Rings of one and of many members."""
    for ring in (GOLDEN, first_ring([RingMember("a", "n", "zöne", 3)]),
                 next_ring(GOLDEN, GOLDEN.members[1:])):  # fmt: skip
        assert unpack(pack(ring)) == ring


def test_bytes_stay_for_ever() -> None:
    """A build of today's members gives the bytes it always gave."""
    data = pack(GOLDEN)

    assert data[:24] == b"TORUSRNG\x01\x04\x04\x00\x01\x00\x00\x00\x0bpartiti"
    assert digest(data) == "ffc71b95f5a4263d378ed4b192e2d52910e12970fab12f6839ce938fd3c4af96"
    following = pack(next_ring(GOLDEN, GOLDEN.members[1:]))
    assert digest(following) == "5653980b354402028c804c1eba260db927e5106489661d634166225b408f7ba4"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused(data) -> None:
    """Cut short, lengthened or with a byte changed: never a wrong ring, never another error."""
    packed = bytearray(PACKED)
    at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(packed) - 1)))
    how = data.draw(st.sampled_from(["flip", "cut", "more"]))
    if how == "flip":
        packed[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del packed[at:]
    else:
        packed += b"\0"

    with pytest.raises((Corruption, UnknownVersion)):
        unpack(bytes(packed))


def test_other_format_is_named() -> None:
    """A newer torus's ring is not taken for damage."""
    data = bytearray(pack(GOLDEN))
    data[8] = 2

    with pytest.raises(UnknownVersion, match="format 2"):
        unpack(bytes(data))

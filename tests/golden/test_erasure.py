"""The erasure code's bytes, frozen: what is on disks can be rebuilt by every later version.

The figures were made once with zfec 1.6.0.0; nothing here calls it.
"""

import hashlib
from pathlib import Path

import pytest

from torus._fast.erasure import Code, kernels

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    (2, 1): ["0302"],
    (4, 2): ["7740380e", "c7a70d6c"],
    (8, 3): ["8918d07d92a4f5fe", "36f8d0ce2519fb16", "5fcda3405048f69e"],
    (10, 4): [
        "42c15c2d722ceb841bd9",
        "a9155162f59532206599",
        "0f1f1be06bddd3634fa3",
        "fb4f95a62f7561260893",
    ],
    (16, 6): [
        "c53b1f2d4faa83c2616977a6e25f373a",
        "7d17d71360a9a89dcda37db4ab286d1a",
        "40243c124b6206d32eaef1c7a84eb453",
        "c9bc7b2e6d0f652b4b149846588e015b",
        "26791b1c131064169c1ebd769abc6423",
        "f17e9fa5d814255a0986c1335c544b39",
    ],
}
PARITY_SHA256 = {  # of all parity shards, each of 4096 bytes, one after the other
    (2, 1): "e2507ca2632a8356136db00f83a7b94957062a3bed03e18769cd3080da1edfcc",
    (4, 2): "941f10d1bb6222a0de45285d58fd9dec0f8f2275323ce2b62862fbec0c1fe3db",
    (8, 3): "556808fe6b55ffbc3a44b06c0cbfbcd4261d5b8a75ba463261ceeed241ada96e",
    (10, 4): "175d59c941fa715634b84c308052d9526833acbe2fafa6fd3e08a11263417584",
    (16, 6): "4d561604238fa149eb34ba84c4f58764fd8b9318f834e73a733901b884db0282",
}


def _content(size_bytes: int) -> bytes:
    """Return bytes that every machine and version makes alike."""
    counts = range(-(-size_bytes // 32))
    return b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in counts)[:size_bytes]


@pytest.mark.parametrize(("data", "parity"), ROWS)
def test_the_matrix_is_frozen(data: int, parity: int) -> None:
    """The identity, then one row of factors for each parity shard."""
    identity = [bytes(row == column for column in range(data)) for row in range(data)]

    assert Code(data, parity).matrix() == [*identity, *map(bytes.fromhex, ROWS[data, parity])]


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize(("data", "parity"), PARITY_SHA256)
def test_the_parity_of_known_content_is_frozen(data: int, parity: int, kernel: str) -> None:
    made = bytearray(parity * 4096)

    Code(data, parity, kernel).encode_whole(_content(data * 4096), made, 4096)

    assert hashlib.sha256(made).hexdigest() == PARITY_SHA256[data, parity]


def test_the_example_of_the_documents_is_what_the_code_makes() -> None:
    """docs/erasure-code.md shows four data shards of 16 bytes and their parity."""
    made = bytearray(32)
    content = _content(64)

    Code(4, 2).encode_whole(content, made, 16)

    assert made[:16].hex() == "6a99917aa6610e06ac1a608d64997566"
    assert made[16:].hex() == "08ce360e032497be685df4e2fd4a93d6"
    page = (ROOT / "docs/erasure-code.md").read_text()
    whole = content + made
    for number in range(6):
        assert f"| {number} | `{whole[number * 16 : number * 16 + 16].hex()}` |" in page
    for row in ROWS[4, 2]:
        assert " ".join(row[at : at + 2] for at in range(0, 8, 2)) in page

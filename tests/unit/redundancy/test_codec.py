"""Both engines of the erasure code: the same bytes, and the same mistakes refused."""

import random
import sys
from collections.abc import Callable

import pytest

from torus.errors import ConfigError
from torus.redundancy import codec as codec_module
from torus.redundancy.codec import Codec, choose_engine, codec, engine_in_use
from torus.redundancy.scheme import parse
from torus.redundancy.stripe import stripe

ENGINES = ("kernel", "zfec")


@pytest.fixture(params=ENGINES)
def code(request: pytest.FixtureRequest) -> Codec:
    """Return the code of 4+2."""
    return codec(parse("erasure:4+2"), request.param)


@pytest.mark.parametrize("text", ["erasure:2+1", "erasure:4+2", "erasure:10+4", "erasure:16+6"])
def test_both_engines_make_the_same_bytes(text: str, rng: random.Random) -> None:
    """All four operations, on content that is short."""
    scheme = parse(text)
    ours, theirs = codec(scheme, "kernel"), codec(scheme, "zfec")
    shard = 200
    content = rng.randbytes(scheme.data * shard - 333)
    padded = content.ljust(scheme.data * shard, b"\0")
    pieces = [padded[at : at + shard] for at in range(0, len(padded), shard)]
    results = []
    for one in (ours, theirs):
        whole = bytearray(b"\xff" * scheme.parity * shard)
        one.encode_whole(content, whole, shard)
        each = [bytearray(b"\xff" * shard) for _ in range(scheme.parity)]
        one.encode(pieces, each)
        grown = [bytearray(shard) for _ in range(scheme.parity)]
        for number, piece in enumerate(pieces):
            one.add(number, piece[:77], grown, 0)
            one.add(number, memoryview(piece)[77:], grown, 77)
        lost = rng.sample(range(scheme.shards), scheme.parity) if not results else results[0][3]
        have = [number for number in range(scheme.shards) if number not in lost]
        shards = [*pieces, *each]
        outputs = [bytearray(shard) for _ in lost]
        one.rebuild(have, [shards[number] for number in have], lost, outputs)

        assert outputs == [shards[number] for number in lost]
        assert bytes(whole) == b"".join(each) == b"".join(grown)
        results.append((whole, each, outputs, lost))

    assert results[0] == results[1]


def _some(count: int, size: int = 8) -> list[bytearray]:
    return [bytearray(size) for _ in range(count)]


MISTAKES: dict[str, tuple[Callable[[Codec], None], str]] = {
    "encode: too few data": (lambda code: code.encode(_some(3), _some(2)), "4 buffers as data"),
    "encode: too many data": (lambda code: code.encode(_some(5), _some(2)), "4 buffers as data"),
    "encode: too few parity": (lambda code: code.encode(_some(4), _some(1)), "2 buffers as par"),
    "encode: unequal data": (
        lambda code: code.encode([*_some(3), bytearray(9)], _some(2)),
        "data shard 3 has 9 bytes, expected 8 as number 0 has",
    ),
    "encode: unequal parity": (
        lambda code: code.encode(_some(4), [bytearray(8), bytearray(7)]),
        "parity shard 1 has 7 bytes, expected 8",
    ),
    "encode: other parity": (lambda code: code.encode(_some(4), _some(2, 9)), "9 bytes.* 8 as a"),
    "encode: read-only": (
        lambda code: code.encode(_some(4), [bytearray(8), bytes(8)]),
        "parity shard 1 cannot be used: expected it .*writable",
    ),
    "encode: not contiguous": (
        lambda code: code.encode([*_some(3), memoryview(bytes(16))[::2]], _some(2)),
        "data shard 3 cannot be used: expected it contiguous",
    ),
    "whole: too much": (
        lambda code: code.encode_whole(bytes(33), bytearray(16), 8),
        "33 bytes, expected at most 4 shards of 8",
    ),
    "whole: other parity": (
        lambda code: code.encode_whole(bytes(32), bytearray(17), 8),
        "17 bytes, expected 2 shards of 8",
    ),
    "whole: read-only": (lambda code: code.encode_whole(bytes(32), bytes(16), 8), "writable"),
    "whole: huge shards": (
        lambda code: code.encode_whole(b"", bytearray(0), 1 << 63),
        "0 bytes, expected 2 shards of",
    ),
    "add: parity": (lambda code: code.add(4, bytes(1), _some(2), 0), "shard 4 is no data shard"),
    "add: negative": (lambda code: code.add(-1, bytes(1), _some(2), 0), "shard -1 is no data"),
    "add: too long": (
        lambda code: code.add(0, bytes(5), _some(2), 4),
        "5 bytes at 4 do not lie in a shard of 8",
    ),
    "add: before": (lambda code: code.add(0, bytes(5), _some(2), -1), "5 bytes at -1 do not"),
    "add: far": (lambda code: code.add(0, b"", _some(2), 9), "0 bytes at 9 do not"),
    "rebuild: number too high": (
        lambda code: code.rebuild([0, 1, 2, 6], _some(4), [3], _some(1)),
        "shard 6 does not exist: expected 0 to 5",
    ),
    "rebuild: negative number": (
        lambda code: code.rebuild([0, 1, 2, -1], _some(4), [3], _some(1)),
        "shard -1 does not exist",
    ),
    "rebuild: wanted too high": (
        lambda code: code.rebuild([0, 1, 2, 3], _some(4), [255], _some(1)),
        "shard 255 does not exist",
    ),
    "rebuild: number twice": (
        lambda code: code.rebuild([0, 1, 2, 2], _some(4), [3], _some(1)),
        "named twice",
    ),
    "rebuild: wanted twice": (
        lambda code: code.rebuild([0, 1, 2, 3], _some(4), [4, 4], _some(2)),
        "named twice",
    ),
    "rebuild: wanted is present": (
        lambda code: code.rebuild([0, 1, 2, 3], _some(4), [3], _some(1)),
        "named twice",
    ),
    "rebuild: too few": (
        lambda code: code.rebuild([0, 1, 2], _some(3), [3], _some(1)),
        "3 shards are given, expected 4",
    ),
    "rebuild: too many": (
        lambda code: code.rebuild([0, 1, 2, 3, 4], _some(5), [5], _some(1)),
        "5 shards are given, expected 4",
    ),
    "rebuild: buffers missing": (
        lambda code: code.rebuild([0, 1, 2, 3], _some(3), [4], _some(1)),
        "expected 4 buffers as present shard, found 3",
    ),
    "rebuild: outputs missing": (
        lambda code: code.rebuild([0, 1, 2, 3], _some(4), [4, 5], _some(1)),
        "2 buffers as wanted shard, found 1",
    ),
    "rebuild: unequal": (
        lambda code: code.rebuild([0, 1, 2, 3], [*_some(3), bytearray(9)], [4], _some(1)),
        "present shard 3 has 9 bytes",
    ),
    "rebuild: unequal output": (
        lambda code: code.rebuild([0, 1, 2, 3], _some(4), [4], _some(1, 7)),
        "7 bytes, expected 8",
    ),
    "rebuild: read-only": (
        lambda code: code.rebuild([0, 1, 2, 3], _some(4), [4], [bytes(8)]),
        "wanted shard 0 cannot be used: expected it .*writable",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_refused(code: Codec, mistake: str) -> None:
    """zfec alone would compute with a share number that does not exist."""
    call, reason = MISTAKES[mistake]
    with pytest.raises(ValueError, match=reason):
        call(code)


def test_nothing_is_written_when_something_does_not_fit(code: Codec) -> None:
    outputs = [bytearray(b"\xaa" * 8), bytearray(b"\xaa" * 7)]
    with pytest.raises(ValueError):
        code.encode([b"\1" * 8] * 4, outputs)
    with pytest.raises(ValueError):
        code.rebuild([0, 1, 2, 3], [b"\1" * 8] * 4, [4, 5], outputs)

    assert outputs == [b"\xaa" * 8, b"\xaa" * 7]


def test_an_output_over_an_input_is_refused_by_the_kernel() -> None:
    """It would be read after it was written."""
    code = codec(parse("erasure:4+2"), "kernel")
    store = memoryview(bytearray(48))
    parts = [store[at : at + 8] for at in range(0, 48, 8)]
    code.encode(parts[:4], parts[4:])
    for outputs in ([parts[3], parts[4]], [parts[4], parts[4]], [store[31:39], parts[5]]):
        with pytest.raises(ValueError, match="overlaps"):
            code.encode(parts[:4], outputs)
    with pytest.raises(ValueError, match="overlaps"):
        code.encode_whole(store[:32], store[31:47], 8)
    with pytest.raises(ValueError, match="overlaps"):
        code.rebuild([0, 1, 2, 3], parts[:4], [4], [store[1:9]])
    with pytest.raises(ValueError, match="overlaps"):
        code.add(0, parts[4][:1], parts[4:], 0)


def test_buffers_are_let_go_after_a_mistake(code: Codec) -> None:
    """A bytearray that is still held could not grow."""
    held = _some(4)
    with pytest.raises(ValueError):
        code.encode(held, [bytearray(8), bytearray(9)])
    code.encode(held, outputs := _some(2))
    for buffer in [*held, *outputs]:
        buffer.append(0)


def test_nothing_wanted_is_nothing_to_do(code: Codec) -> None:
    code.rebuild([0, 1, 2, 3], _some(4), [], [])


def test_the_kernel_is_taken_by_itself_and_each_code_is_made_once() -> None:
    scheme = parse("erasure:4+2")

    assert codec(scheme).kernel == codec(scheme, "kernel").kernel != "zfec"
    assert codec(scheme, "zfec").kernel == "zfec"
    assert codec(scheme) is codec(parse("erasure:4+2"))


def test_zfec_takes_over_where_the_kernel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of None fails as that of a module that is not there."""
    monkeypatch.setitem(sys.modules, "torus._fast.erasure", None)
    scheme = parse("erasure:5+2")

    assert codec_module._made.__wrapped__(scheme, "auto").kernel == "zfec"
    with pytest.raises(ConfigError, match="compiled kernel is not possible"):
        codec_module._made.__wrapped__(scheme, "kernel")


def test_without_zfec_the_kernel_works_and_zfec_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zfec", None)
    monkeypatch.delitem(sys.modules, "torus.redundancy.reference", raising=False)
    scheme = parse("erasure:5+2")

    assert codec_module._made.__wrapped__(scheme, "auto").kernel != "zfec"
    with pytest.raises(ConfigError, match="zfec is not possible") as refused:
        codec_module._made.__wrapped__(scheme, "zfec")
    assert refused.value.hint == "pip install zfec"


def test_a_chosen_engine_computes_until_another_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all that do not name one; what was made before goes on as it was."""
    monkeypatch.setattr(codec_module, "_chosen", ["auto"])
    scheme = parse("erasure:4+2")
    before = codec(scheme)
    assert engine_in_use() == before.kernel != "zfec"

    choose_engine("zfec")

    assert codec(scheme).kernel == engine_in_use() == "zfec"
    assert codec(scheme, "kernel").kernel == before.kernel != "zfec"
    choose_engine("kernel")
    assert codec(scheme) is codec(scheme, "kernel")


def test_an_engine_that_is_missing_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "_chosen", ["auto"])
    monkeypatch.setitem(sys.modules, "zfec", None)
    monkeypatch.delitem(sys.modules, "torus.redundancy.reference", raising=False)
    codec_module._made.cache_clear()
    with pytest.raises(ConfigError, match="zfec is not possible"):
        choose_engine("zfec")

    assert engine_in_use() != "zfec"
    monkeypatch.setitem(sys.modules, "torus._fast.erasure", None)
    codec_module._made.cache_clear()
    assert engine_in_use() == ""


@pytest.mark.parametrize("content_bytes", [0, 1, 4095, 4096, 5000, 8192, 12288, 16000, 16384])
def test_any_piece_is_rebuilt_from_the_same_column_of_other_shards(
    code: Codec, content_bytes: int, rng: random.Random
) -> None:
    """With any two disks gone, whatever of the content is stored, nothing else is read."""
    cut = stripe(parse("erasure:4+2"), 16384)
    content = rng.randbytes(content_bytes)
    parity = bytearray(2 * cut.shard_bytes)
    code.encode_whole(content, parity, cut.shard_bytes)
    whole = content.ljust(cut.content_bytes_max, b"\0") + parity
    shards = [whole[number * cut.shard_bytes :][: cut.shard_bytes] for number in range(6)]
    for number, shard in enumerate(shards):
        assert not any(shard[cut.stored_bytes(number, content_bytes) :])
    for _ in range(40):
        gone = rng.sample(range(6), 2)
        alive = [number for number in rng.sample(range(6), 6) if number not in gone]
        offset = rng.randrange(content_bytes + 1)
        size = rng.randrange(content_bytes - offset + 1)
        answer = bytearray()
        for piece in cut.locate(offset, size):
            stop = piece.offset + piece.size_bytes
            if piece.shard in gone:
                made = bytearray(piece.size_bytes)
                columns = [shards[number][piece.offset : stop] for number in alive]
                code.rebuild(alive, columns, [piece.shard], [made])
                answer += made
            else:
                answer += shards[piece.shard][piece.offset : stop]

        assert answer == content[offset : offset + size], (gone, alive, offset, size)

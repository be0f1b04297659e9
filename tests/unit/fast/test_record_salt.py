"""A record that somebody could have foreseen is not the next one of a chunk."""

from torus._fast.record import KIND_DATA, RecordBuilder, RecordReader

CHUNK = (7, 3, 0, 12)


def _record(index: int, lsn: int, offset: int, salt: int) -> bytes:
    builder = RecordBuilder(1 << 16, 16)
    builder.add_data(index, bytes(4096))
    builder.finish(KIND_DATA, CHUNK, index, lsn, 0, offset, salt)
    return builder.tobytes()


def test_record_with_another_salt_ends_the_log() -> None:
    """What a guest stored in a slot's former life is not taken for the next record."""
    first = _record(0, 1, 512, salt=0xA11CE)
    forged = _record(1, 2, 512 + len(first), salt=0xB0B)
    reader = RecordReader(first + forged, CHUNK, 512, 0)

    assert reader.advance()
    assert not reader.advance()
    assert reader.problem == "record of another use of the slot"


def test_salt_can_be_told_for_a_walk_that_begins_in_the_middle() -> None:
    """Replay from a checkpoint knows the chunk's salt from its first record."""
    second = _record(1, 2, 5120, salt=0xB0B)

    assert not RecordReader(second, CHUNK, 5120, 1, 0xA11CE).advance()
    assert RecordReader(second, CHUNK, 5120, 1, 0xB0B).advance()
    assert RecordReader(second, CHUNK, 5120, 1).salt is None

"""The handshake: what every option is answered with."""

import struct

import pytest

from torus.errors import LocalProtocolError, RemoteProtocolError
from torus.limits import NBD_CONTEXTS_MAX
from torus.nbd import constants as nbd
from torus.nbd.handshake import (
    Aborted,
    Answer,
    ContextsRequested,
    ExportDescription,
    ExportRequested,
    Handshake,
    ListRequested,
)
from torus.testing.nbd_client import context_bytes, info_bytes

DISK = ExportDescription("disk", 1 << 30, False, "a disk")


def begin(flags: int = 3) -> Handshake:
    handshake = Handshake()
    assert handshake.greeting().hex() == "4e42444d4147494349484156454f50540003"
    handshake.receive(struct.pack(">I", flags))
    assert handshake.next_event() is None
    return handshake


def ask(handshake: Handshake, option: int, argument: bytes = b""):
    handshake.receive(struct.pack(">QII", nbd.IHAVEOPT, option, len(argument)) + argument)
    return handshake.next_event()


def replies(payload: bytes) -> list[tuple[int, bytes]]:
    found = []
    while payload:
        magic, _, kind, length = struct.unpack_from(">QIII", payload)
        assert magic == nbd.NBD_REP_MAGIC
        found.append((kind, payload[20 : 20 + length]))
        payload = payload[20 + length :]
    return found


def kind_of(event: Answer) -> int:
    assert isinstance(event, Answer)
    return replies(event.payload)[-1][0]


@pytest.mark.parametrize("flags", [4, 0x80000000, 7])
def test_client_flags_unknown_end_the_connection(flags):
    """Unknown client flags cannot be negotiated about."""
    handshake = Handshake()
    handshake.receive(struct.pack(">I", flags))
    with pytest.raises(RemoteProtocolError, match="flags"):
        handshake.next_event()


def test_option_unknown_is_unsupported_and_negotiation_goes_on():
    """ERR_UNSUP after the data were read."""
    handshake = begin()
    assert kind_of(ask(handshake, 4711, b"whatever")) == nbd.NBD_REP_ERR_UNSUP
    assert isinstance(ask(handshake, nbd.NBD_OPT_LIST), ListRequested)


def test_option_too_long_ends_before_its_data():
    """Nothing is kept for an option that claims gigabytes."""
    handshake = begin()
    handshake.receive(struct.pack(">QII", nbd.IHAVEOPT, nbd.NBD_OPT_GO, 1 << 31))
    with pytest.raises(RemoteProtocolError, match="claims"):
        handshake.next_event()


def test_option_wrong_magic_ends():
    """What is no option is garbage."""
    handshake = begin()
    handshake.receive(bytes(16))
    with pytest.raises(RemoteProtocolError, match="magic"):
        handshake.next_event()


def test_receive_too_much_ahead_ends():
    """A client that sends without waiting cannot fill memory."""
    handshake = begin()
    handshake.receive(bytes(65536))
    handshake.receive(bytes(65536))
    with pytest.raises(RemoteProtocolError, match="ahead"):
        handshake.receive(bytes(65536))


@pytest.mark.parametrize(
    "option",
    [
        nbd.NBD_OPT_LIST,
        nbd.NBD_OPT_STARTTLS,
        nbd.NBD_OPT_STRUCTURED_REPLY,
        nbd.NBD_OPT_EXTENDED_HEADERS,
    ],
)
def test_option_with_data_it_must_not_have_is_invalid(option):
    """ERR_INVALID, and nothing is negotiated."""
    handshake = begin()
    assert kind_of(ask(handshake, option, b"x")) == nbd.NBD_REP_ERR_INVALID
    assert not handshake.structured


def test_starttls_is_unsupported():
    """There is no TLS yet, and the client is told."""
    assert kind_of(ask(begin(), nbd.NBD_OPT_STARTTLS)) == nbd.NBD_REP_ERR_UNSUP


def test_abort_is_acknowledged():
    """ABORT ends the session, with data or without."""
    event = ask(begin(), nbd.NBD_OPT_ABORT, b"bye")
    assert isinstance(event, Aborted)
    assert replies(event.payload) == [(nbd.NBD_REP_ACK, b"")]


def test_headers_negotiation():
    """Extended headers imply structured replies; the older option is refused afterwards."""
    handshake = begin()
    assert kind_of(ask(handshake, nbd.NBD_OPT_STRUCTURED_REPLY)) == nbd.NBD_REP_ACK
    assert (handshake.structured, handshake.extended) == (True, False)
    assert kind_of(ask(handshake, nbd.NBD_OPT_EXTENDED_HEADERS)) == nbd.NBD_REP_ACK
    assert (handshake.structured, handshake.extended) == (True, True)
    again = ask(handshake, nbd.NBD_OPT_STRUCTURED_REPLY)
    assert kind_of(again) == nbd.NBD_REP_ERR_EXT_HEADER_REQD
    handshake.receive(struct.pack(">QII", nbd.IHAVEOPT, nbd.NBD_OPT_EXPORT_NAME, 4) + b"disk")
    with pytest.raises(RemoteProtocolError, match="EXPORT_NAME"):
        handshake.next_event()


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124), (0, 124), (2, 0)])
def test_export_name_answer_has_zeroes_unless_negotiated(flags, zeroes):
    """The reply of the oldest option, to the byte."""
    handshake = begin(flags)
    event = ask(handshake, nbd.NBD_OPT_EXPORT_NAME, b"disk")
    assert event == ExportRequested(nbd.NBD_OPT_EXPORT_NAME, "disk")
    assert event.begins_transmission
    assert not event.may_refuse

    found = handshake.describe(event, DISK)

    assert found[:8] == (1 << 30).to_bytes(8, "big")
    assert found[10:] == bytes(zeroes)
    with pytest.raises(LocalProtocolError):
        handshake.refuse(event, nbd.NBD_REP_ERR_UNKNOWN, "no")


def test_info_then_go_answer_what_is_asked():
    """EXPORT and BLOCK_SIZE always, NAME and DESCRIPTION when asked, unknown ones ignored."""
    handshake = begin()
    for option in (nbd.NBD_OPT_INFO, nbd.NBD_OPT_GO):
        event = ask(handshake, option, info_bytes("disk", 1, 2, 3, 999))
        assert isinstance(event, ExportRequested)
        assert event.begins_transmission == (option == nbd.NBD_OPT_GO)
        found = replies(handshake.describe(event, DISK))
        assert [payload[:2] for _, payload in found] == [b"\0\0", b"\0\1", b"\0\2", b"\0\3", b""]
        assert found[3][1].hex() == "0003000002000000100002000000"
        assert found[1][1] == b"\0\1disk"
    plain = ask(begin(), nbd.NBD_OPT_GO, info_bytes("disk"))
    assert isinstance(plain, ExportRequested)
    assert [p[:2] for _, p in replies(begin().describe(plain, DISK))] == [b"\0\0", b"\0\3", b""]


def test_transmission_flags_depend_on_what_was_negotiated():
    """DF needs structured replies; a read-only export announces nothing that writes."""
    handshake = begin()
    event = ask(handshake, nbd.NBD_OPT_GO, info_bytes("disk"))
    writable = struct.unpack_from(">H", replies(handshake.describe(event, DISK))[0][1], 10)[0]
    assert writable == 0b1101_0110_1101
    ask(handshake, nbd.NBD_OPT_STRUCTURED_REPLY)
    read_only = ExportDescription("disk", 512, True)
    flags = struct.unpack_from(">H", replies(handshake.describe(event, read_only))[0][1], 10)[0]
    assert flags == 0b0101_1000_1111


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\4disk",
        b"\0\0\0\5disk\0\0",
        b"\0\0\0\4disk\0\1",
        b"\0\0\0\4disk\0\0\0",
        b"\xff\xff\xff\xffdisk\0\0",
        b"\0\0\0\4di\0k\0\0",
        b"\0\0\0\4di\xffk\0\0",
        struct.pack(">I", 4097) + b"x" * 4097 + b"\0\0",
    ],
)
def test_info_with_lengths_that_disagree_is_invalid(argument):
    """ERR_INVALID, and the handshake goes on."""
    handshake = begin()
    for option in (nbd.NBD_OPT_INFO, nbd.NBD_OPT_GO):
        assert kind_of(ask(handshake, option, argument)) == nbd.NBD_REP_ERR_INVALID


def test_contexts_need_structured_replies():
    """ERR_INVALID before STRUCTURED_REPLY."""
    argument = context_bytes("disk", "base:allocation")
    for option in (nbd.NBD_OPT_LIST_META_CONTEXT, nbd.NBD_OPT_SET_META_CONTEXT):
        assert kind_of(ask(begin(), option, argument)) == nbd.NBD_REP_ERR_INVALID


OFFERED = (
    "base:allocation",
    "qemu:allocation-depth",
    "torus:changed-since:a",
    "torus:changed-since:b",
)


@pytest.mark.parametrize(
    ("queries", "listed", "selected"),
    [
        ((), OFFERED, ()),
        (("base:allocation",), OFFERED[:1], OFFERED[:1]),
        (("base:",), OFFERED[:1], ()),
        (("base:unknown",), (), ()),
        (("qemu:dirty-bitmap:x", "base:allocation"), OFFERED[:1], OFFERED[:1]),
        (("qemu:",), OFFERED[1:2], ()),
        (("qemu:dirty-bitmap:",), (), ()),
        (("torus:",), OFFERED[2:], ()),
        (("torus:changed-since:",), OFFERED[2:], ()),
        (("torus:changed-since:b", "base:"), (OFFERED[0], OFFERED[3]), OFFERED[3:]),
        (("torus:changed-since:b", "base:allocation"), *[(OFFERED[0], OFFERED[3])] * 2),
        (("torus:changed-since:c",), (), ()),
        (("base:allocation", "base:allocation"), OFFERED[:1], OFFERED[:1]),
    ],
)
def test_contexts_queries(queries, listed, selected):
    """Wildcards list and do not select; unknown names are ignored; ids count from 1."""
    handshake = begin()
    ask(handshake, nbd.NBD_OPT_STRUCTURED_REPLY)
    argument = context_bytes("disk", *queries)
    event = ask(handshake, nbd.NBD_OPT_LIST_META_CONTEXT, argument)
    assert isinstance(event, ContextsRequested)
    expected = [(nbd.NBD_REP_META_CONTEXT, bytes(4) + name.encode()) for name in listed]
    found = replies(handshake.list_or_set_contexts(event, "disk", OFFERED))
    assert found == [*expected, (nbd.NBD_REP_ACK, b"")]
    assert handshake.contexts == ()

    event = ask(handshake, nbd.NBD_OPT_SET_META_CONTEXT, argument)
    assert isinstance(event, ContextsRequested)
    expected = [
        (nbd.NBD_REP_META_CONTEXT, struct.pack(">I", number) + name.encode())
        for number, name in enumerate(selected, 1)
    ]
    found = replies(handshake.list_or_set_contexts(event, "disk", OFFERED))
    assert found == [*expected, (nbd.NBD_REP_ACK, b"")]
    assert [(one.context_id, one.name) for one in handshake.contexts] == list(
        enumerate(selected, 1)
    )
    assert handshake.contexts_for("disk") == handshake.contexts
    assert handshake.contexts_for("other") == ()


def test_too_many_contexts_select_none():
    """One more than the bound is ERR_TOO_BIG, and what was selected before is gone."""
    names = [f"torus:changed-since:{number}" for number in range(NBD_CONTEXTS_MAX + 1)]
    handshake = begin()
    ask(handshake, nbd.NBD_OPT_STRUCTURED_REPLY)
    for count, kind in ((NBD_CONTEXTS_MAX, nbd.NBD_REP_ACK), (17, nbd.NBD_REP_ERR_TOO_BIG)):
        argument = context_bytes("disk", *names[:count])
        event = ask(handshake, nbd.NBD_OPT_SET_META_CONTEXT, argument)
        assert isinstance(event, ContextsRequested)
        found = replies(handshake.list_or_set_contexts(event, "disk", names))
        assert found[-1][0] == kind
        assert len(handshake.contexts) == len(found) - 1


def select(handshake: Handshake, name: str = "disk") -> None:
    ask(handshake, nbd.NBD_OPT_STRUCTURED_REPLY)
    event = ask(handshake, nbd.NBD_OPT_SET_META_CONTEXT, context_bytes(name, "base:allocation"))
    assert isinstance(event, ContextsRequested)
    handshake.list_or_set_contexts(event, name, OFFERED)
    assert handshake.contexts


@pytest.mark.parametrize(
    "argument",
    [
        context_bytes("disk", "nocolon"),
        context_bytes("disk", "base:allocation") + b"x",
        context_bytes("disk", "base:allocation")[:-1],
        b"\0\0\0\0\xff\xff\xff\xff",
        b"\0\0\0\0",
    ],
)
def test_set_contexts_that_fails_forgets_the_ones_before(argument):
    """A failed SET replaces the earlier one with nothing."""
    handshake = begin()
    select(handshake)
    event = ask(handshake, nbd.NBD_OPT_SET_META_CONTEXT, argument)
    assert kind_of(event) == nbd.NBD_REP_ERR_INVALID
    assert handshake.contexts == ()


def test_contexts_of_another_export_do_not_count():
    """Contexts belong to the export they were selected for; INFO does not settle that."""
    handshake = begin()
    select(handshake, "other")
    for option in (nbd.NBD_OPT_INFO, nbd.NBD_OPT_GO):
        assert handshake.contexts
        event = ask(handshake, option, info_bytes("disk"))
        assert isinstance(event, ExportRequested)
        handshake.describe(event, DISK)
    assert handshake.contexts == ()


def test_list_answers_every_export():
    """One SERVER reply for each, then ACK."""
    handshake = begin()
    ask(handshake, nbd.NBD_OPT_LIST)
    assert replies(handshake.list_exports(["a", "é"])) == [
        (nbd.NBD_REP_SERVER, b"\0\0\0\1a"),
        (nbd.NBD_REP_SERVER, b"\0\0\0\2\xc3\xa9"),
        (nbd.NBD_REP_ACK, b""),
    ]


def test_events_come_out_whatever_the_pieces():
    """One byte at a time is as good as all at once."""
    handshake = Handshake()
    stream = struct.pack(">I", 3)
    stream += struct.pack(">QII", nbd.IHAVEOPT, nbd.NBD_OPT_LIST, 0)
    stream += struct.pack(">QII", nbd.IHAVEOPT, nbd.NBD_OPT_GO, 10) + info_bytes("disk")
    found = []
    for byte in stream + b"rest":
        handshake.receive(bytes([byte]))
        while (event := handshake.next_event()) is not None:
            found.append(event)

    assert found == [ListRequested(), ExportRequested(nbd.NBD_OPT_GO, "disk")]
    assert handshake.leftover() == b"rest"

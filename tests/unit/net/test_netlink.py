"""Netlink: what is sent to the kernel's nbd driver, byte for byte, and what its answers mean.

The conversations in tests/golden/netlink were recorded with Debian's kernel 6.1 (little-endian).
"""

import errno
import json
import struct
import sys
from pathlib import Path

import pytest

from torus.errors import Busy, NotFound, PermissionDenied, RemoteProtocolError, TimedOut
from torus.net import netlink
from torus.net.netlink import KernelRefusal, Message
from torus.net.netlink_nbd import (
    NBD_CMD_STATUS,
    DeviceOptions,
    NbdFamily,
    parse_status,
)

RECORDED = json.loads(
    (Path(__file__).parents[2] / "golden/netlink/linux-6.1.json").read_text(encoding="utf-8")
)
OURS = "torus:abc:0000000000000001"

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="recorded little-endian")


class RecordedKernel:
    """Answers a request as the kernel did, if it is byte for byte the one that it was asked."""

    def __init__(self, *names: str) -> None:
        self._script = [RECORDED["resolve"], *(RECORDED[name] for name in names)]
        self._answers: list[bytes] = []
        self._sequence = 0
        self.closed = False

    def send(self, data: bytes, /) -> int:
        turn = self._script.pop(0)
        self._sequence = struct.unpack_from("=I", data, 8)[0]
        assert with_sequence(data, 0).hex() == with_sequence(bytes.fromhex(turn["send"]), 0).hex()
        self._answers = [bytes.fromhex(text) for text in turn["receive"]]
        return len(data)

    def recv(self, size: int, /) -> bytes:
        return with_sequence(self._answers.pop(0), self._sequence)

    def close(self) -> None:
        self.closed = True


def with_sequence(datagram: bytes, sequence: int) -> bytes:
    """Return a datagram of one message with another sequence number."""
    return datagram[:8] + struct.pack("=I", sequence) + datagram[12:]


def test_the_family_is_resolved() -> None:
    """Its number, as the kernel gave it."""
    with NbdFamily(RecordedKernel()) as family:
        assert family.family == netlink.Family(32)


def test_connect() -> None:
    """Two sockets, all options; the index comes back."""
    with NbdFamily(RecordedKernel("connect")) as family:
        options = DeviceOptions(1 << 30, 4096, 0x10D, OURS, 0, 3600)
        assert family.connect(3, [5, 7], options) == 3


def test_a_device_in_use() -> None:
    """EBUSY: somebody else's."""
    with NbdFamily(RecordedKernel("connect_busy")) as family:
        options = DeviceOptions(1 << 30, 4096, 0x10D, "torus:x", 0, 3600)
        with pytest.raises(Busy, match="/dev/nbd3 is in use") as caught:
            family.connect(3, [5], options)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "index", "backend"),
    [
        ("reconnect_other_backend", 3, "torus:other"),
        ("reconnect_not_connected", 5, "torus:other"),
        ("reconnect_after_disconnect", 3, OURS),
    ],
)
def test_reconnect_is_refused(name: str, index: int, backend: str) -> None:
    """Not connected, or connected to something else: there is nothing to give sockets to."""
    with NbdFamily(RecordedKernel(name)) as family:
        with pytest.raises(NotFound, match=f"/dev/nbd{index} is not connected to this volume"):
            family.reconnect(index, [7], backend)


def test_resize_and_disconnect() -> None:
    """Acknowledged without more; disconnecting what is not connected is no error."""
    with NbdFamily(RecordedKernel("resize", "disconnect", "disconnect_free")) as family:
        family.resize(3, 2 << 30, 4096, OURS)
        family.disconnect(3)
        family.disconnect(4)


def test_a_device_that_there_is_not() -> None:
    """EINVAL is told with its name."""
    with NbdFamily(RecordedKernel("disconnect_no_such")) as family:
        with pytest.raises(KernelRefusal, match=r"/dev/nbd4000: Invalid argument \(EINVAL\)") as e:
            family.disconnect(4000)
        assert e.value.errno == errno.EINVAL


def test_status() -> None:
    """Every device with its state."""
    with NbdFamily(RecordedKernel("status", "status_connected")) as family:
        assert family.connected() == dict.fromkeys(range(8), False)
        assert family.connected() == {**dict.fromkeys(range(8), False), 3: True}


class Answering:
    """A kernel that answers every request with the same bytes."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = list(answers)

    def send(self, data: bytes, /) -> int:
        return len(data)

    def recv(self, size: int, /) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        pass


def refusal(number: int, *, flags: int = 0, more: bytes = b"", sequence: int = 1) -> bytes:
    """Return an acknowledgement with an errno."""
    body = struct.pack("=i", -number) + struct.pack("=IHHII", 16, 16, 5, sequence, 0) + more
    return struct.pack("=IHHII", 16 + len(body), 2, flags, sequence, 0) + body


def test_no_driver() -> None:
    """ENOENT for the family: not loaded, and how to load it."""
    with pytest.raises(NotFound, match="driver is not loaded") as caught:
        NbdFamily(Answering(refusal(errno.ENOENT)))
    assert caught.value.hint is not None
    assert "modprobe nbd" in caught.value.hint


def test_not_root() -> None:
    """EPERM: says what it needs."""
    with pytest.raises(PermissionDenied, match="Operation not permitted") as caught:
        NbdFamily(Answering(refusal(errno.EPERM)))
    assert caught.value.hint is not None
    assert "root" in caught.value.hint


def test_a_silent_kernel() -> None:
    """A time limit, not a hang."""
    with pytest.raises(TimedOut):
        NbdFamily(Answering(TimeoutError()))


def test_the_kernels_own_words() -> None:
    """An extended acknowledgement's message is told; capped or with the whole request."""
    words = netlink.attribute_text(netlink.NLMSGERR_ATTR_MSG, "no such thing")
    flags = netlink.NLM_F_ACK_TLVS | netlink.NLM_F_CAPPED
    with pytest.raises(KernelRefusal, match=r"family 'nbd': no such thing: Invalid argument"):
        NbdFamily(Answering(refusal(errno.EINVAL, flags=flags, more=words)))


def test_answers_to_others_are_skipped() -> None:
    """A late answer to a request that was given up does not answer this one."""
    late = refusal(errno.EIO, sequence=99)
    with pytest.raises(NotFound):
        NbdFamily(Answering(late, refusal(errno.ENOENT)))


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x10\0\0",
        struct.pack("=IHHII", 15, 2, 0, 1, 0),
        struct.pack("=IHHII", 17, 2, 0, 1, 0),
        struct.pack("=IHHII", 0, 2, 0, 1, 0),
        struct.pack("=IHHIIi", 20, 2, 0, 1, 0, 0),
    ],
)
def test_datagrams_that_lie(datagram: bytes) -> None:
    """A length that is too small or too large, or an acknowledgement without its request."""
    with pytest.raises(RemoteProtocolError):
        NbdFamily(Answering(datagram))


@pytest.mark.parametrize(
    "encoded", [b"\x04", b"\x03\0\x01\0", b"\x09\0\x01\0abcd", b"\x00\x00\x00\x00"]
)
def test_attributes_that_lie(encoded: bytes) -> None:
    """A length that is too small or beyond the end."""
    with pytest.raises(RemoteProtocolError):
        netlink.parse_attributes(encoded)


def test_status_that_lacks_something() -> None:
    """A device without state is no device."""
    item = netlink.nested(1, netlink.attribute_u32(1, 3))
    body = struct.pack("=BBH", NBD_CMD_STATUS, 1, 0) + netlink.nested(9, item)
    with pytest.raises(RemoteProtocolError, match="without index or state"):
        parse_status(body)


@pytest.mark.parametrize("payload", [b"", b"123", b"123456789"])
def test_no_number(payload: bytes) -> None:
    """1, 2, 4 or 8 bytes are a number."""
    with pytest.raises(RemoteProtocolError, match="no number has"):
        netlink.number_of(payload, "it")


def test_garbage_never_crashes() -> None:
    """Every prefix of real answers, and single bytes changed: understood or refused."""
    for turn in RECORDED.values():
        for text in turn["receive"]:
            whole = bytes.fromhex(text)
            for cut in range(len(whole)):
                _read(whole[:cut])
                _read(whole[:cut] + bytes([whole[cut] ^ 0xFF]) + whole[cut + 1 :])


def _read(datagram: bytes) -> None:
    try:
        for message in netlink.parse_messages(datagram):
            _read_body(message)
    except RemoteProtocolError:
        return


def _read_body(message: Message) -> None:
    if message.kind == netlink.NLMSG_ERROR:
        netlink.parse_error(message)
    else:
        parse_status(message.body)
        netlink.parse_family(message.body)

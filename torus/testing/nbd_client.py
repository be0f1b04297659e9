"""A bare NBD client for tests: says exactly what it is told, right or wrong.

Decides nothing.  Nothing that ships imports it.
"""

import asyncio
import struct
from dataclasses import dataclass, field

from torus.nbd import constants as nbd


@dataclass(frozen=True, slots=True)
class OptionReply:
    """One reply during the handshake."""

    option: int
    kind: int
    payload: bytes


@dataclass(slots=True)
class Reply:
    """All chunks of the reply to one request."""

    cookie: int
    error: int = 0
    message: str = ""
    simple: bool = False
    parts: list[tuple[int, int, bytes | None]] = field(default_factory=list)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    payload: bytes = b""

    @property
    def content(self) -> bytes:
        """Return what was read, holes filled in, in order of offset."""
        if self.simple:
            return self.payload
        parts = sorted(self.parts)
        return b"".join(bytes(length) if data is None else data for _, length, data in parts)


def request_bytes(
    command: int,
    offset: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    cookie: int = 1,
    payload: bytes = b"",
    extended: bool = False,
) -> bytes:
    """Return one request, as the protocol's text has it."""
    magic = nbd.NBD_EXTENDED_REQUEST_MAGIC if extended else nbd.NBD_REQUEST_MAGIC
    form = ">IHHQQQ" if extended else ">IHHQQI"
    return struct.pack(form, magic, flags, command, cookie, offset, length) + payload


class BareClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.extended = False
        self.size_bytes = 0
        self.flags = 0
        self._reads: dict[int, int] = {}

    @classmethod
    async def connect(cls, path: str) -> "BareClient":
        """Connect to a unix socket and take the greeting."""
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 26)
        client = cls(reader, writer)
        try:
            greeting = await reader.readexactly(18)
        except (asyncio.IncompleteReadError, ConnectionError):
            await client.close()
            raise
        magic, have, _ = struct.unpack(">QQH", greeting)
        assert (magic, have) == (nbd.NBDMAGIC, nbd.IHAVEOPT)
        return client

    @classmethod
    async def go(
        cls,
        path: str,
        name: str = "disk",
        *,
        structured: bool = False,
        extended: bool = False,
        contexts: bool | tuple[str, ...] = False,
    ) -> "BareClient":
        """Connect and enter the transmission phase; ``contexts``: base:allocation, or these."""
        client = await cls.connect(path)
        client.say_flags()
        if extended:
            assert (await client.option(nbd.NBD_OPT_EXTENDED_HEADERS))[-1].kind == nbd.NBD_REP_ACK
            client.extended = True
        elif structured or contexts:
            assert (await client.option(nbd.NBD_OPT_STRUCTURED_REPLY))[-1].kind == nbd.NBD_REP_ACK
        if contexts:
            wanted = contexts if isinstance(contexts, tuple) else ("base:allocation",)
            argument = context_bytes(name, *wanted)
            replies = await client.option(nbd.NBD_OPT_SET_META_CONTEXT, argument)
            assert replies[-1].kind == nbd.NBD_REP_ACK, replies
        replies = await client.option(nbd.NBD_OPT_GO, info_bytes(name))
        assert replies[-1].kind == nbd.NBD_REP_ACK, replies
        return client

    def say_flags(self, flags: int = 3) -> None:
        """Send the client flags."""
        self.writer.write(struct.pack(">I", flags))

    def say_option(self, option: int, argument: bytes = b"") -> None:
        """Send an option."""
        self.writer.write(struct.pack(">QII", nbd.IHAVEOPT, option, len(argument)) + argument)

    async def option(self, option: int, argument: bytes = b"") -> list[OptionReply]:
        """Send an option and return its replies, the final one last."""
        self.say_option(option, argument)
        replies = []
        while True:
            header = await self.reader.readexactly(20)
            magic, echoed, kind, length = struct.unpack(">QIII", header)
            assert magic == nbd.NBD_REP_MAGIC
            assert echoed == option
            payload = await self.reader.readexactly(length)
            replies.append(OptionReply(option, kind, payload))
            if kind == nbd.NBD_REP_INFO and payload[:2] == b"\0\0":
                self.size_bytes, self.flags = struct.unpack(">QH", payload[2:])
            if kind == nbd.NBD_REP_ACK or kind & nbd.NBD_REP_ERR:
                return replies

    def say(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        cookie: int = 1,
        payload: bytes = b"",
    ) -> None:
        """Send a request."""
        if payload and self.extended:
            flags |= nbd.NBD_CMD_FLAG_PAYLOAD_LEN
        if command == nbd.NBD_CMD_READ:
            self._reads[cookie] = length
        self.writer.write(
            request_bytes(
                command,
                offset,
                length or len(payload),
                flags=flags,
                cookie=cookie,
                payload=payload,
                extended=self.extended,
            )
        )

    async def ask(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        cookie: int = 1,
        payload: bytes = b"",
    ) -> Reply:
        """Send a request and return its reply."""
        self.say(command, offset, length, flags=flags, cookie=cookie, payload=payload)
        return await self.reply()

    async def reply(self) -> Reply:
        """Return the next reply; its chunks must not be interleaved with others'."""
        reply: Reply | None = None
        while True:
            magic = struct.unpack(">I", await self.reader.readexactly(4))[0]
            if magic == nbd.NBD_SIMPLE_REPLY_MAGIC:
                assert reply is None
                assert not self.extended
                return await self._simple()
            if magic == nbd.NBD_EXTENDED_REPLY_MAGIC:
                assert self.extended
                head = struct.unpack(">HHQQQ", await self.reader.readexactly(28))
                flags, kind, cookie, _, length = head
            else:
                assert magic == nbd.NBD_STRUCTURED_REPLY_MAGIC, hex(magic)
                head = struct.unpack(">HHQI", await self.reader.readexactly(16))
                flags, kind, cookie, length = head
            payload = await self.reader.readexactly(length)
            if reply is None:
                reply = Reply(cookie)
            assert reply.cookie == cookie
            _take_chunk(reply, kind, payload)
            if flags & nbd.NBD_REPLY_FLAG_DONE:
                self._reads.pop(cookie, None)
                return reply

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return

    async def is_closed(self) -> bool:
        """Return whether the server closes without another byte."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    async def _simple(self) -> Reply:
        error, cookie = struct.unpack(">IQ", await self.reader.readexactly(12))
        length = self._reads.pop(cookie, 0)
        payload = await self.reader.readexactly(length) if length and not error else b""
        return Reply(cookie, error, simple=True, payload=payload)


def _take_chunk(reply: Reply, kind: int, payload: bytes) -> None:
    if kind == nbd.NBD_REPLY_TYPE_OFFSET_DATA:
        reply.parts.append((int.from_bytes(payload[:8], "big"), len(payload) - 8, payload[8:]))
    elif kind == nbd.NBD_REPLY_TYPE_OFFSET_HOLE:
        offset, length = struct.unpack(">QI", payload)
        reply.parts.append((offset, length, None))
    elif kind == nbd.NBD_REPLY_TYPE_BLOCK_STATUS:
        found = list(struct.iter_unpack(">II", payload[4:]))
        reply.extents[int.from_bytes(payload[:4], "big")] = [(a, b) for a, b in found]
    elif kind == nbd.NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
        context, count = struct.unpack_from(">II", payload)
        wide = list(struct.iter_unpack(">QQ", payload[8:]))
        assert len(wide) == count
        reply.extents[context] = [(a, b) for a, b in wide]
    elif kind == nbd.NBD_REPLY_TYPE_ERROR:
        reply.error, length = struct.unpack_from(">IH", payload)
        assert length == len(payload) - 6
        reply.message = payload[6:].decode()
    else:
        assert kind == nbd.NBD_REPLY_TYPE_NONE
        assert not payload


def info_bytes(name: str, *asked: int) -> bytes:
    """Return the data of INFO and GO."""
    encoded = name.encode()
    return struct.pack(
        f">I{len(encoded)}sH{len(asked)}H", len(encoded), encoded, len(asked), *asked
    )


def context_bytes(name: str, *queries: str) -> bytes:
    """Return the data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    encoded = name.encode()
    found = struct.pack(f">I{len(encoded)}sI", len(encoded), encoded, len(queries))
    for query in queries:
        found += struct.pack(f">I{len(query.encode())}s", len(query.encode()), query.encode())
    return found

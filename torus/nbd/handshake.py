"""The fixed newstyle handshake, without sockets: bytes in, events out, bytes back.

Decides what every option of a client means and how it is answered.  What needs the world (which
exports exist, how large one is) comes out as an event, and its answer goes back in through
``list_exports``, ``describe``, ``list_or_set_contexts`` or ``refuse``.  Everything else is answered
here and comes out as ``Answer``.  Source: NBD protocol, "Fixed newstyle negotiation".
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torus.errors import LocalProtocolError, RemoteProtocolError
from torus.limits import (
    BLOCK_BYTES,
    NBD_CONTEXTS_MAX,
    NBD_NAME_BYTES_MAX,
    NBD_OPTION_BYTES_MAX,
    NBD_REQUEST_BYTES_MAX,
    SECTOR_BYTES,
)
from torus.nbd import constants as nbd
from torus.nbd.contexts import MetaContext, list_contexts, select_contexts

_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")
_ZEROES = bytes(124)

_BARE_OPTIONS = {
    nbd.NBD_OPT_LIST: "LIST",
    nbd.NBD_OPT_STARTTLS: "STARTTLS",
    nbd.NBD_OPT_STRUCTURED_REPLY: "STRUCTURED_REPLY",
    nbd.NBD_OPT_EXTENDED_HEADERS: "EXTENDED_HEADERS",
}


@dataclass(frozen=True, slots=True)
class ExportDescription:
    """What a client learns of an export."""

    name: str
    size_bytes: int
    read_only: bool
    description: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes to send; nothing to decide."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Aborted:
    """The client ends the session: send ``payload``, then close."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class ListRequested:
    """Answer with ``list_exports``."""

    option: int = nbd.NBD_OPT_LIST


@dataclass(frozen=True, slots=True)
class ExportRequested:
    """INFO, GO or EXPORT_NAME: answer with ``describe``, or ``refuse`` (EXPORT_NAME: close)."""

    option: int
    name: str
    asked: tuple[int, ...] = ()

    @property
    def begins_transmission(self) -> bool:
        """Whether a good answer ends the handshake."""
        return self.option != nbd.NBD_OPT_INFO

    @property
    def may_refuse(self) -> bool:
        """Whether the client can be told no; otherwise the connection has to close."""
        return self.option != nbd.NBD_OPT_EXPORT_NAME


@dataclass(frozen=True, slots=True)
class ContextsRequested:
    """LIST or SET of metadata contexts: answer with ``list_or_set_contexts`` or ``refuse``."""

    option: int
    name: str
    queries: tuple[str, ...]


Event = Answer | Aborted | ListRequested | ExportRequested | ContextsRequested


class _Malformed(Exception):
    """An option's data do not fit together; becomes NBD_REP_ERR_INVALID."""


class Handshake:
    """The server's side of one connection's handshake."""

    def __init__(self) -> None:
        self.structured = False
        self.extended = False
        self.contexts: tuple[MetaContext, ...] = ()
        self.contexts_export = ""
        self.fixed = False
        self._no_zeroes = False
        self._greeted = False
        self._received = bytearray()

    def greeting(self) -> bytes:
        """Return the first bytes that the server sends."""
        flags = nbd.NBD_FLAG_FIXED_NEWSTYLE | nbd.NBD_FLAG_NO_ZEROES
        return struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, flags)

    def receive(self, chunk: bytes | memoryview) -> None:
        """Take bytes from the client; ``next_event`` says what they mean.

        Raises: RemoteProtocolError when more is sent than two options can hold, because a
        client waits for one answer before it asks the next question.
        """
        self._received += chunk
        if len(self._received) > 2 * (NBD_OPTION_BYTES_MAX + _OPTION.size):
            raise RemoteProtocolError(
                f"{len(self._received)} bytes were sent ahead during the handshake"
            )

    def leftover(self) -> bytes:
        """Return, and forget, what came after the option that began the transmission."""
        rest = bytes(self._received)
        self._received.clear()
        return rest

    def next_event(self) -> Event | None:
        """Return the next event, None when more bytes are needed.

        Raises: RemoteProtocolError when the stream cannot be followed any more.
        """
        if not self._greeted and not self._take_client_flags():
            return None
        if len(self._received) < _OPTION.size:
            return None
        magic, option, length = _OPTION.unpack_from(self._received)
        if magic != nbd.IHAVEOPT:
            raise RemoteProtocolError(
                f"option magic {magic:#018x} is wrong, expected {nbd.IHAVEOPT:#018x}"
            )
        if length > NBD_OPTION_BYTES_MAX:
            raise RemoteProtocolError(
                f"option {option} claims {length} bytes, the most is {NBD_OPTION_BYTES_MAX}"
            )
        if len(self._received) < _OPTION.size + length:
            return None
        argument = bytes(self._received[_OPTION.size : _OPTION.size + length])
        del self._received[: _OPTION.size + length]
        try:
            return self._on_option(option, argument)
        except _Malformed as malformed:
            if option == nbd.NBD_OPT_SET_META_CONTEXT:
                self.contexts = ()
            return Answer(_reply(option, nbd.NBD_REP_ERR_INVALID, str(malformed).encode()))

    def list_exports(self, names: Sequence[str]) -> bytes:
        """Return the answer to ListRequested."""
        replies = []
        for name in names:
            encoded = name.encode()
            reply = struct.pack(">I", len(encoded)) + encoded
            replies.append(_reply(nbd.NBD_OPT_LIST, nbd.NBD_REP_SERVER, reply))
        return b"".join(replies) + _reply(nbd.NBD_OPT_LIST, nbd.NBD_REP_ACK)

    def describe(self, request: ExportRequested, export: ExportDescription) -> bytes:
        """Return the good answer to ExportRequested.

        Metadata contexts that were selected for another export are forgotten.
        """
        flags = transmission_flags(read_only=export.read_only, structured=self.structured)
        if request.option == nbd.NBD_OPT_EXPORT_NAME:
            head = struct.pack(">QH", export.size_bytes, flags)
            self._settle_contexts(export.name)
            return head if self._no_zeroes else head + _ZEROES
        information = [struct.pack(">HQH", nbd.NBD_INFO_EXPORT, export.size_bytes, flags)]
        if nbd.NBD_INFO_NAME in request.asked:
            information.append(struct.pack(">H", nbd.NBD_INFO_NAME) + export.name.encode())
        if nbd.NBD_INFO_DESCRIPTION in request.asked and export.description:
            text = export.description.encode()[:NBD_NAME_BYTES_MAX].decode(errors="ignore")
            information.append(struct.pack(">H", nbd.NBD_INFO_DESCRIPTION) + text.encode())
        sizes = (SECTOR_BYTES, BLOCK_BYTES, NBD_REQUEST_BYTES_MAX)
        information.append(struct.pack(">HIII", nbd.NBD_INFO_BLOCK_SIZE, *sizes))
        if request.begins_transmission:
            self._settle_contexts(export.name)
        replies = [_reply(request.option, nbd.NBD_REP_INFO, item) for item in information]
        return b"".join(replies) + _reply(request.option, nbd.NBD_REP_ACK)

    def list_or_set_contexts(
        self, request: ContextsRequested, export_name: str, offered: Sequence[str]
    ) -> bytes:
        """Return the answer to ContextsRequested; a SET takes effect.

        ``offered`` are the names of the contexts that the export has.  More than
        NBD_CONTEXTS_MAX cannot be selected: then none is, and the answer says so.
        """
        if request.option == nbd.NBD_OPT_LIST_META_CONTEXT:
            found = [MetaContext(0, name) for name in list_contexts(offered, request.queries)]
        else:
            names = select_contexts(offered, request.queries)
            if len(names) > NBD_CONTEXTS_MAX:
                message = f"{len(names)} contexts are asked for, the most is {NBD_CONTEXTS_MAX}"
                return self.refuse(request, nbd.NBD_REP_ERR_TOO_BIG, message)
            found = [MetaContext(number, name) for number, name in enumerate(names, 1)]
            self.contexts = tuple(found)
            self.contexts_export = export_name
        replies = [
            _reply(
                request.option,
                nbd.NBD_REP_META_CONTEXT,
                struct.pack(">I", context.context_id) + context.name.encode(),
            )
            for context in found
        ]
        return b"".join(replies) + _reply(request.option, nbd.NBD_REP_ACK)

    def contexts_for(self, export_name: str) -> tuple[MetaContext, ...]:
        """Return the contexts that were selected, if it was for this export."""
        return self.contexts if export_name == self.contexts_export else ()

    def refuse(
        self, request: ListRequested | ExportRequested | ContextsRequested, error: int, message: str
    ) -> bytes:
        """Return an error answer with a message for people.

        Raises: LocalProtocolError for EXPORT_NAME, which cannot be answered but by closing.
        """
        if request.option == nbd.NBD_OPT_EXPORT_NAME:
            raise LocalProtocolError("EXPORT_NAME cannot be refused with a reply")
        if request.option == nbd.NBD_OPT_SET_META_CONTEXT:
            self.contexts = ()
        return _reply(request.option, error, message.encode()[:NBD_NAME_BYTES_MAX])

    def _settle_contexts(self, export_name: str) -> None:
        self.contexts = self.contexts_for(export_name)

    def _take_client_flags(self) -> bool:
        if len(self._received) < 4:
            return False
        flags = int.from_bytes(self._received[:4], "big")
        del self._received[:4]
        known = nbd.NBD_FLAG_C_FIXED_NEWSTYLE | nbd.NBD_FLAG_C_NO_ZEROES
        if flags & ~known:
            raise RemoteProtocolError(
                f"client flags {flags:#x} hold unknown bits, known are {known:#x}"
            )
        self.fixed = bool(flags & nbd.NBD_FLAG_C_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & nbd.NBD_FLAG_C_NO_ZEROES)
        self._greeted = True
        return True

    def _on_option(self, option: int, argument: bytes) -> Event:
        if option in _BARE_OPTIONS and argument:
            raise _Malformed(f"{_BARE_OPTIONS[option]} takes no data, found {len(argument)} bytes")
        match option:
            case nbd.NBD_OPT_EXPORT_NAME:
                return self._on_export_name(argument)
            case nbd.NBD_OPT_ABORT:
                return Aborted(_reply(option, nbd.NBD_REP_ACK))
            case nbd.NBD_OPT_LIST:
                return ListRequested()
            case nbd.NBD_OPT_INFO | nbd.NBD_OPT_GO:
                return _parse_info(option, argument)
            case nbd.NBD_OPT_STARTTLS:
                message = b"this server has no TLS"
                return Answer(_reply(option, nbd.NBD_REP_ERR_UNSUP, message))
            case nbd.NBD_OPT_STRUCTURED_REPLY | nbd.NBD_OPT_EXTENDED_HEADERS:
                return self._on_headers(option)
            case nbd.NBD_OPT_LIST_META_CONTEXT | nbd.NBD_OPT_SET_META_CONTEXT:
                if not self.structured:
                    raise _Malformed("metadata contexts need structured replies first")
                return _parse_contexts(option, argument)
        message = f"option {option} is not known".encode()
        return Answer(_reply(option, nbd.NBD_REP_ERR_UNSUP, message))

    def _on_export_name(self, argument: bytes) -> ExportRequested:
        if self.extended:
            raise RemoteProtocolError("EXPORT_NAME is not allowed with extended headers, GO is")
        try:
            name = _text(argument, "export name")
        except _Malformed as malformed:
            raise RemoteProtocolError(f"EXPORT_NAME: {malformed}") from malformed
        return ExportRequested(nbd.NBD_OPT_EXPORT_NAME, name)

    def _on_headers(self, option: int) -> Answer:
        if self.extended and option == nbd.NBD_OPT_STRUCTURED_REPLY:
            message = b"extended headers are negotiated already"
            return Answer(_reply(option, nbd.NBD_REP_ERR_EXT_HEADER_REQD, message))
        self.structured = True
        self.extended = self.extended or option == nbd.NBD_OPT_EXTENDED_HEADERS
        return Answer(_reply(option, nbd.NBD_REP_ACK))


def transmission_flags(*, read_only: bool, structured: bool) -> int:
    """Return the flags that announce what an export can do."""
    flags = (
        nbd.NBD_FLAG_HAS_FLAGS
        | nbd.NBD_FLAG_SEND_FLUSH
        | nbd.NBD_FLAG_SEND_FUA
        | nbd.NBD_FLAG_CAN_MULTI_CONN
        | nbd.NBD_FLAG_SEND_CACHE
    )
    if read_only:
        flags |= nbd.NBD_FLAG_READ_ONLY
    else:
        flags |= (
            nbd.NBD_FLAG_SEND_TRIM | nbd.NBD_FLAG_SEND_WRITE_ZEROES | nbd.NBD_FLAG_SEND_FAST_ZERO
        )
    return flags | nbd.NBD_FLAG_SEND_DF if structured else flags


def _reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    return _REPLY.pack(nbd.NBD_REP_MAGIC, option, kind, len(payload)) + payload


def _text(encoded: bytes, what: str) -> str:
    if len(encoded) > NBD_NAME_BYTES_MAX:
        raise _Malformed(f"{what} of {len(encoded)} bytes, the most is {NBD_NAME_BYTES_MAX}")
    try:
        text = encoded.decode()
    except UnicodeDecodeError as undecodable:
        raise _Malformed(f"{what} is not UTF-8") from undecodable
    if "\0" in text:
        raise _Malformed(f"{what} contains NUL")
    return text


def _take_text(argument: bytes, offset: int, what: str) -> tuple[str, int]:
    """Return the string with a 32-bit length at ``offset``, and the offset behind it."""
    if offset + 4 > len(argument):
        raise _Malformed(f"the data end before the length of the {what}")
    length = int.from_bytes(argument[offset : offset + 4], "big")
    end = offset + 4 + length
    if end > len(argument):
        raise _Malformed(f"{what} of {length} bytes is longer than the option")
    return _text(argument[offset + 4 : end], what), end


def _parse_info(option: int, argument: bytes) -> ExportRequested:
    name, offset = _take_text(argument, 0, "export name")
    if offset + 2 > len(argument):
        raise _Malformed("the data end before the number of information requests")
    count = int.from_bytes(argument[offset : offset + 2], "big")
    if len(argument) - offset - 2 != 2 * count:
        raise _Malformed(
            f"{count} information requests need {2 * count} bytes, "
            f"found {len(argument) - offset - 2}"
        )
    return ExportRequested(option, name, struct.unpack_from(f">{count}H", argument, offset + 2))


def _parse_contexts(option: int, argument: bytes) -> ContextsRequested:
    name, offset = _take_text(argument, 0, "export name")
    if offset + 4 > len(argument):
        raise _Malformed("the data end before the number of queries")
    count = int.from_bytes(argument[offset : offset + 4], "big")
    if count > len(argument) // 4:
        raise _Malformed(f"{count} queries do not fit in {len(argument)} bytes")
    return ContextsRequested(option, name, tuple(_queries(argument, offset + 4, count)))


def _queries(argument: bytes, offset: int, count: int) -> Iterator[str]:
    for _ in range(count):
        query, offset = _take_text(argument, offset, "query")
        if ":" not in query:
            raise _Malformed(f"query {query[:64]!r} has no namespace")
        yield query
    if offset != len(argument):
        raise _Malformed(f"{len(argument) - offset} bytes follow the last query")

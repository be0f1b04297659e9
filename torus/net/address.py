"""Where a server listens: ``HOST:PORT``, ``[v6]:PORT``, ``unix:PATH``.

Decides how an address is written; opens nothing.
"""

from dataclasses import dataclass

from torus.errors import UsageError

_PATH_BYTES_MAX = 107  # sockaddr_un of Linux, without its NUL


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP address; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def nbd_uri(self, export: str = "") -> str:
        """Return the address as an NBD URI."""
        return f"nbd://{self}/{export}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket's path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def nbd_uri(self, export: str = "") -> str:
        """Return the address as an NBD URI."""
        return f"nbd+unix:///{export}?socket={self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str, *, default_port: int | None = None) -> Address:
    """Return the address that ``text`` means; ``HOST`` alone takes ``default_port``.

    Raises: UsageError saying what is wrong with it.
    """
    if text.startswith("unix:"):
        return _parse_path(text)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _unusable(text, "the bracket is not closed before the port")
        port = rest[1:]
    else:
        host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
        if ":" in host:
            raise _unusable(text, "an IPv6 address needs brackets")
    if not host:
        raise _unusable(text, "the host is missing")
    if not port and default_port is not None:
        return TcpAddress(host, default_port)
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise _unusable(text, f"port {port!r} is not a number from 0 to 65535")
    return TcpAddress(host, int(port))


def _parse_path(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if not path:
        raise _unusable(text, "the path is missing")
    if "\0" in path:
        raise _unusable(text, "the path contains NUL")
    if len(path.encode()) > _PATH_BYTES_MAX:
        raise _unusable(
            text, f"the path has {len(path.encode())} bytes, the most is {_PATH_BYTES_MAX}"
        )
    return UnixAddress(path)


def _unusable(text: str, reason: str) -> UsageError:
    return UsageError(
        f"address {text!r} cannot be used: {reason}",
        hint="write HOST:PORT, [IPV6]:PORT or unix:PATH",
    )

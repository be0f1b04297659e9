"""Which address a node tells others to reach it at.

Decides what "auto" and a wildcard mean: the address that this host uses towards the metadata
store, because every node has to reach that one, too.  Nothing is sent to find it out.
"""

import socket

from torus.metadata.etcd_url import is_etcd, parse_etcd
from torus.net.address import TcpAddress, parse_address

_LOOPBACK = TcpAddress("127.0.0.1", 0)
_WILDCARDS = ("0.0.0.0", "::", "*")


def listen_address(wanted: str, meta_url: str) -> TcpAddress | None:
    """Return where to listen for peers of other hosts; None: nowhere.

    ``wanted``: "auto", "none" or HOST:PORT.  Raises: UsageError.
    """
    if wanted == "none":
        return None
    if wanted == "auto":
        return TcpAddress(own_host(meta_url), 0)
    address = parse_address(wanted)
    return address if isinstance(address, TcpAddress) else None


def advertised(bound: TcpAddress, meta_url: str) -> str:
    """Return HOST:PORT for others: a wildcard is no address to connect to."""
    if bound.host in _WILDCARDS:
        return str(TcpAddress(own_host(meta_url), bound.port))
    return str(bound)


def own_host(meta_url: str) -> str:
    """Return this host's address on the way to the metadata store's hosts.

    One that other hosts can reach is preferred: an endpoint may be on this very host.
    """
    found = [own for host, port in endpoints(meta_url) if (own := _towards(host, port))]
    far = [own for own in found if not own.startswith("127.") and own != "::1"]
    return (*far, *found, _LOOPBACK.host)[0]


def endpoints(meta_url: str) -> list[tuple[str, int]]:
    """Return the hosts and ports of a metadata store that is elsewhere."""
    if not is_etcd(meta_url):
        return []
    return [(host.strip("[]"), port) for host, port in parse_etcd(meta_url).members]


def _towards(host: str, port: int) -> str:
    """Return the local address that packets to ``host`` would leave from; empty: none."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port or 1, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(target)  # of a datagram socket: sends nothing
            return str(sock.getsockname()[0])
    except OSError:
        return ""

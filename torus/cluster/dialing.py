"""From an address to a link with a node that is of this cluster and has the disk that is wanted.

Decides how long that may take, and that nothing is said through TCP without a secret.  Implements
docs/protocol.md, "States" and "Proof".
"""

import asyncio
import os
from dataclasses import dataclass, field, replace

from torus import limits
from torus.cluster.asked import Deadlines
from torus.cluster.link import PeerLink
from torus.errors import PermissionDenied, ShuttingDown, Unavailable
from torus.net.address import Address, UnixAddress
from torus.net.connecting import connect_error, dial
from torus.net.tls import TlsFiles
from torus.wire import proof
from torus.wire.messages import Hello


@dataclass(frozen=True, slots=True)
class Dialing:
    """How nodes are connected to: what this side says of itself and proves."""

    hello: Hello  # its nonce is drawn anew for each connection
    secret: bytes = b""
    tls: TlsFiles | None = None  # for TCP
    deadlines: Deadlines = field(default_factory=Deadlines)


async def connect(address: Address, dialing: Dialing) -> PeerLink:
    """Connect to a node, exchange hellos and proofs.

    Raises: Unavailable, PermissionDenied, ForeignData, UnknownVersion, RemoteProtocolError,
    NotFound when the node has not the disk that is wanted, Busy, ConfigError.
    """
    if not dialing.secret and not isinstance(address, UnixAddress):
        raise PermissionDenied(
            f"node at {address} cannot be asked through TCP: this cluster has no secret",
            hint="use its unix socket; a cluster whose metadata is in etcd has a secret",
        )
    hello = replace(dialing.hello, nonce=os.urandom(proof.NONCE_BYTES))
    link = PeerLink(address, hello, dialing.secret, dialing.deadlines)
    silence_s = dialing.deadlines.silence_s
    limit_s = limits.PEER_CONNECT_TIMEOUT_S if silence_s is None else 2 * silence_s
    try:
        async with asyncio.timeout(limit_s):
            await dial(address, link, dialing.tls)
            await link.hello()
    except TimeoutError as exc:
        late = Unavailable(f"node at {address} did not say hello in {limit_s:g} s")
        link.fail(late)
        raise late from exc
    except ShuttingDown as exc:
        raise Unavailable(exc.message, hint=exc.hint) from exc
    except OSError as exc:
        raise connect_error(address, exc) from exc
    except asyncio.CancelledError:
        link.fail(Unavailable(f"connecting to {address} was given up"))
        raise
    return link

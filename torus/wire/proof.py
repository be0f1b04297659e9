"""Who may speak: proofs of the cluster's secret, and the capability in every request.

Decides what is hashed.  Both proofs cover both sides' random numbers, so none can be used again;
the capabilities of a connection are made with a key of its own.  Implements docs/protocol.md,
"Proof" and "Capabilities".  Pure: random numbers come from the caller.
"""

import hmac
import struct

from torus.errors import PermissionDenied
from torus.wire.messages import Hello

NONCE_BYTES = 16
PROOF_BYTES = 32
_CAPABILITY_BYTES = 8
_PAIR = struct.Struct("<QI")
_PAIRS_MAX = 4096  # remembered for each connection


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


def _covered(client: Hello, server: Hello) -> bytes:
    return b"".join(
        (client.nonce, server.nonce, server.cluster_id, client.disk_id, server.disk_id)
    )  # fmt: skip


def server_proof(secret: bytes, client: Hello, server: Hello) -> bytes:
    """Return what a server proves with that it knows ``secret``."""
    return _mac(secret, b"torus peer 2 server\0", _covered(client, server))


def client_proof(secret: bytes, client: Hello, server: Hello) -> bytes:
    """Return what a client proves with that it knows ``secret``."""
    return _mac(secret, b"torus peer 2 client\0", _covered(client, server))


def check(found: bytes, expected: bytes, who: str) -> None:
    """Refuse a proof that was made with another secret.

    Raises: PermissionDenied.
    """
    if not hmac.compare_digest(found, expected):
        raise PermissionDenied(
            f"{who} does not know the cluster's secret",
            hint="both sides must use the same metadata store (--meta)",
        )


class Capabilities:
    """The capabilities of one connection: 8 bytes for each (volume, epoch), as a number."""

    def __init__(self, secret: bytes, client: Hello, server: Hello) -> None:
        self._key = _mac(secret, b"torus peer 2 capability\0", _covered(client, server))
        self.known: dict[tuple[int, int], int] = {}

    def of(self, volume: int, epoch: int) -> int:
        """Return the capability of an epoch of a volume; made once for each."""
        found = self.known.get((volume, epoch))
        if found is None:
            made = _mac(self._key, _PAIR.pack(volume, epoch))[:_CAPABILITY_BYTES]
            found = int.from_bytes(made, "little")
            if len(self.known) >= _PAIRS_MAX:
                self.known.clear()
            self.known[volume, epoch] = found
        return found

    def check(self, volume: int, epoch: int, capability: int) -> None:
        """Refuse a request without the capability for what its fence token says.

        Raises: PermissionDenied.
        """
        if self.of(volume, epoch) != capability:
            raise PermissionDenied(f"a request has no capability for {volume}:{epoch}")

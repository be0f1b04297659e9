"""How a process of this cluster connects to a disk of another one.

Decides what it shows (the cluster's secret, certificates for TCP) and how patient it is.
"""

from torus import limits
from torus.cluster.membership import Place
from torus.cluster.peer import PeerChunks
from torus.config import CommonConfig
from torus.errors import ConfigError, Unavailable
from torus.metadata.schema import Cluster
from torus.net.address import parse_address
from torus.net.tls import TlsFiles


def tls_files(common: CommonConfig) -> TlsFiles | None:
    """Return the files for TLS between hosts; None: it is not wanted.

    Raises: ConfigError when only some of them are named.
    """
    named = {"cert": common.tls_cert, "key": common.tls_key, "ca": common.tls_ca}
    missing = [f"--tls-{name}" for name, path in named.items() if path is None]
    if len(missing) == len(named):
        return None
    if common.tls_cert is None or common.tls_key is None or common.tls_ca is None:
        raise ConfigError(
            f"TLS between hosts needs {' and '.join(missing)} too",
            hint="name certificate, key and authority, or none of them",
        )
    return TlsFiles(common.tls_cert, common.tls_key, common.tls_ca)


class Dialing:
    """Connects to disks as this process."""

    def __init__(self, cluster: Cluster, tls: TlsFiles | None, name: str) -> None:
        """``name`` is what the other side sees in its log."""
        self._cluster = cluster
        self._tls = tls
        self._name = name

    async def replica(self, place: Place) -> PeerChunks:
        """Connect for writing and reading copies: a node that hangs is noticed soon, and nothing
        is tried again by itself.

        Raises: Unavailable, PermissionDenied, ForeignData, UnknownVersion, RemoteProtocolError,
            NotFound, Busy, ConfigError.
        """
        return await self._connect(
            place, timeout_s=limits.PEER_REQUEST_TIMEOUT_S, silence_s=limits.REPLICA_SILENCE_S
        )

    async def asking(self, place: Place, timeout_s: float) -> PeerChunks:
        """Connect for a question.  Raises: as `replica`."""
        return await self._connect(place, timeout_s=timeout_s, silence_s=None)

    async def _connect(
        self, place: Place, *, timeout_s: float, silence_s: float | None
    ) -> PeerChunks:
        if place.address is None:
            raise Unavailable(f"disk {place.disk_id} of node {place.node_id} is not up")
        return await PeerChunks.connect(
            parse_address(place.address), self._cluster.cluster_id,
            disk_id=place.disk_id, secret=self._cluster.secret, tls=self._tls, name=self._name,
            timeout_s=timeout_s, retry_s=0, silence_s=silence_s,
        )  # fmt: skip

"""Opening the metadata store that a URL names.

Decides the form of the URLs ``sqlite:PATH`` and ``memory:``; that of ``etcd://...`` is decided in
`torus.metadata.etcd_url`.  It does not decide the default (`torus.config`).

Implements docs/metadata.md, "Which store".
"""

import os

from torus.clock import Clock, SystemClock
from torus.errors import ConfigError
from torus.metadata.base import MetadataStore
from torus.metadata.etcd_url import is_etcd, parse_etcd
from torus.metadata.keys import MOVED, MOVING
from torus.metadata.memory import MemoryMetadata
from torus.metadata.moved import refuse_moved, refuse_unfinished
from torus.metadata.sqlite import SqliteMetadata

_EXAMPLE = (
    "write it as sqlite:PATH, such as sqlite:/var/lib/torus/meta.sqlite, or as "
    "etcd://HOST:2379,HOST:2379,HOST:2379/PREFIX"
)


def open_metadata(url: str, clock: Clock | None = None, *, create: bool = True) -> MetadataStore:
    """Open the store that ``url`` names; with ``create``, a missing SQLite file is made.

    etcd is not reached yet, unless without ``create``: then something must be there.

    Raises: ConfigError when the URL cannot be meant or the store was moved, Busy when it is
        being moved, else what the backend's opening raises.
    """
    clock = clock or SystemClock()
    if url == "memory:":
        return MemoryMetadata(clock)
    if is_etcd(url):
        access = parse_etcd(url)
        from torus.metadata.etcd import EtcdMetadata  # gRPC takes 100 ms to import

        return EtcdMetadata(access, clock, create=create)
    store = SqliteMetadata(sqlite_path(url), clock, create=create)
    try:
        for key, refuse in ((MOVED, refuse_moved), (MOVING, refuse_unfinished)):
            entry = store.get(key)
            refuse(entry.value if entry else None, store.path)
    except BaseException:
        store.close()
        raise
    return store


def sqlite_path(url: str) -> str:
    """Return the absolute path of a ``sqlite:PATH`` URL; '~' at its start is the home.

    Raises: ConfigError when it is no such URL.
    """
    scheme, separator, path = url.partition(":")
    if is_etcd(url):
        raise ConfigError(
            f"metadata store {url!r} is etcd, but this needs the embedded one",
            hint="for clusters on etcd: 'torus meta export' and 'import'",
        )
    if scheme == "memory" and separator:
        raise ConfigError(f"metadata store {url!r}: 'memory:' takes no name and has no file")
    if scheme != "sqlite" or not separator:
        raise ConfigError(f"metadata store {url!r} has no known scheme", hint=_EXAMPLE)
    if path.startswith("///"):
        path = path[2:]
    elif path.startswith("//"):
        raise ConfigError(f"metadata store {url!r} names a host", hint=_EXAMPLE)
    if not path or path.endswith("/") or "\0" in path:
        raise ConfigError(f"metadata store {url!r} names no file", hint=_EXAMPLE)
    return os.path.abspath(os.path.expanduser(path))

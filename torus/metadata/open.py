"""Opening the metadata store that a URL names.

Decides the form of the URLs: ``sqlite:PATH`` and ``memory:``.  It does not decide the default
(`torus.config`).

Implements docs/metadata.md, "Which store".
"""

import os

from torus.clock import Clock, SystemClock
from torus.errors import ConfigError
from torus.metadata.base import MetadataStore
from torus.metadata.memory import MemoryMetadata
from torus.metadata.sqlite import SqliteMetadata

_EXAMPLE = "write it as sqlite:PATH, such as sqlite:/var/lib/torus/meta.sqlite"


def open_metadata(url: str, clock: Clock | None = None, *, create: bool = True) -> MetadataStore:
    """Open the store that ``url`` names; with ``create``, a missing SQLite file is made.

    Raises: ConfigError when the URL cannot be meant, else what the backend's opening raises.
    """
    clock = clock or SystemClock()
    if url == "memory:":
        return MemoryMetadata(clock)
    return SqliteMetadata(sqlite_path(url), clock, create=create)


def sqlite_path(url: str) -> str:
    """Return the absolute path of a ``sqlite:PATH`` URL; '~' at its start is the home.

    Raises: ConfigError when it is no such URL.
    """
    scheme, separator, path = url.partition(":")
    if scheme == "etcd" and separator:
        raise ConfigError(f"metadata store {url!r}: etcd is not in this release", hint=_EXAMPLE)
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

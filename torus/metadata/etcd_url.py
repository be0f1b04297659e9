"""URLs of metadata on etcd: ``etcd://HOST:PORT,HOST:PORT/PREFIX?user=...&ca=...``.

Decides their form and what each part means.  A password is never part of one, only the path of
the file that holds it, so a URL may stand in a log.

Implements docs/metadata.md, "Which store".
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torus.errors import ConfigError, PermissionDenied
from torus.limits import ETCD_MEMBERS_MAX, ETCD_PREFIX_BYTES_MAX

SCHEME = "etcd:"
DEFAULT_PORT = 2379
DEFAULT_PREFIX = "torus"
EXAMPLE = "write it as etcd://HOST:2379,HOST:2379,HOST:2379/PREFIX"
FILE_OPTIONS = ("ca", "cert", "key", "password-file")
OPTIONS = ("user", *FILE_OPTIONS)
_ENDPOINT = r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?"
_PREFIX = r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*"


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """How a process reaches its cluster's keys in etcd."""

    members: tuple[tuple[str, int], ...]  # host (an IPv6 address in brackets) and port
    prefix: str  # ends in '/'
    user: str = ""
    ca: str = ""  # path; without it nothing is encrypted
    cert: str = ""
    key: str = ""
    password_file: str = ""

    @property
    def place(self) -> str:
        """Return the URL without its options, for messages."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.members)
        return f"etcd://{hosts}/{self.prefix.rstrip('/')}"


def is_etcd(url: str) -> bool:
    """Tell whether ``url`` means etcd, legal or not."""
    return url.startswith(SCHEME)


def with_options(url: str, options: Mapping[str, str]) -> str:
    """Return ``url`` with those of ``options`` (by the names in OPTIONS) that it has not.

    Only for etcd; others are returned as they are.
    """
    if not is_etcd(url):
        return url
    from urllib.parse import quote

    present = {part.partition("=")[0] for part in url.partition("?")[2].split("&")}
    extra = [
        f"{name}={quote(value, safe='/~')}"
        for name, value in options.items()
        if value and name not in present
    ]
    if not extra:
        return url
    return url + ("&" if "?" in url else "?") + "&".join(extra)


def parse_etcd(url: str) -> EtcdAccess:
    """Read an etcd URL; paths become absolute, '~' at their start is the home.

    Raises: ConfigError when it cannot be meant.
    """
    body, _, query = url.removeprefix(SCHEME).partition("?")
    if not body.startswith("//"):
        raise _wrong(url, "has no '//'")
    authority, _, path = body[2:].partition("/")
    user, at, hosts = authority.rpartition("@")
    options = _options(url, query)
    if at:
        if ":" in user:
            raise _wrong(url.replace(user, "USER:..."), "holds a password",
                         "write the password into a file: --meta-password-file")  # fmt: skip
        options.setdefault("user", user)
    prefix = path.strip("/") or DEFAULT_PREFIX
    if not re.fullmatch(_PREFIX, prefix) or len(prefix) >= ETCD_PREFIX_BYTES_MAX:
        raise _wrong(url, f"has a prefix {prefix!r} that is not letters, digits, '.', '_', '-', "
                     f"'/', or longer than {ETCD_PREFIX_BYTES_MAX - 1}")  # fmt: skip
    access = EtcdAccess(
        members=_members(url, hosts),
        prefix=prefix + "/",
        **{name.replace("-", "_"): value for name, value in options.items()},
    )
    _check(url, access)
    return access


def read_password(access: EtcdAccess) -> str:
    """Return the password of ``access.user``: the first line of its file.

    Raises: ConfigError, PermissionDenied.
    """
    path = access.password_file
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except PermissionError as exc:
        raise PermissionDenied(f"password file {path} cannot be read: {exc.strerror}") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"password file {path} cannot be read: {exc}") from exc


def check_files(access: EtcdAccess) -> None:
    """Refuse files of TLS that cannot be read, before gRPC says less about them.

    Raises: ConfigError, PermissionDenied.
    """
    for what, path in (("CA", access.ca), ("certificate", access.cert), ("key", access.key)):
        if not path:
            continue
        try:
            with open(path, "rb") as file:
                content = file.read()
        except PermissionError as exc:
            raise PermissionDenied(
                f"{what} file {path} of the metadata store cannot be read: {exc.strerror}"
            ) from exc
        except OSError as exc:
            raise ConfigError(
                f"{what} file {path} of the metadata store cannot be read: {exc.strerror}"
            ) from exc
        if b"-----BEGIN " not in content:
            raise ConfigError(f"{what} file {path} of the metadata store is not PEM")


def _options(url: str, query: str) -> dict[str, str]:
    from urllib.parse import unquote

    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in OPTIONS or not equals or not value:
            raise _wrong(url, f"has the option {part!r}", f"known: {', '.join(OPTIONS)}")
        value = unquote(value)
        if name in FILE_OPTIONS:
            value = os.path.abspath(os.path.expanduser(value))
        options[name] = value
    return options


def _members(url: str, hosts: str) -> tuple[tuple[str, int], ...]:
    members = []
    for text in hosts.split(","):
        match = re.fullmatch(_ENDPOINT, text.strip())
        port = int(match[2] or DEFAULT_PORT) if match else 0
        if match is None or not 0 < port < 65536:
            raise _wrong(url, f"has a member {text!r} that is no HOST:PORT")
        members.append((match[1], port))
    if len(members) > ETCD_MEMBERS_MAX or len(set(members)) < len(members):
        raise _wrong(url, f"names a member twice, or more than {ETCD_MEMBERS_MAX}")
    return tuple(members)


def _check(url: str, access: EtcdAccess) -> None:
    if bool(access.cert) != bool(access.key):
        raise _wrong(url, "has a certificate without its key, or a key without its certificate",
                     "give both: --meta-cert FILE --meta-key FILE")  # fmt: skip
    if access.cert and not access.ca:
        raise _wrong(url, "has a certificate but no CA to know etcd by", "add --meta-ca FILE")
    if bool(access.user) != bool(access.password_file):
        raise _wrong(url, "has a user without a password file, or a file without a user",
                     "give both: --meta-user NAME --meta-password-file FILE")  # fmt: skip


def _wrong(url: str, what: str, hint: str = EXAMPLE) -> ConfigError:
    return ConfigError(f"metadata store {url!r} {what}", hint=hint)

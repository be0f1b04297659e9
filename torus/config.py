"""What an operator can set, where it may come from, and what wins.

Decides the names of all settings, their places (flag, environment, file) and the precedence
flag > environment > file > default.  It does not decide what a value means: text is turned
into sizes, times and addresses by the command line, in one place for all three sources.

Implements docs/configuration.md; tests/unit/cli/test_config.py compares the two.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torus.errors import ConfigError
from torus.limits import (
    AUTO_OUT_S,
    GC_RATE_BYTES_DEFAULT,
    REPAIR_RATE_BYTES_DEFAULT,
    TRASH_GRACE_S,
)

SYSTEM_HOME = "/var/lib/torus"
SYSTEM_FILE = "/etc/torus/torus.toml"
DEFAULT_NBD_ADDRESS = "127.0.0.1:10809"
DEFAULT_HTTP_ADDRESS = "127.0.0.1:9809"


@dataclass(frozen=True, slots=True)
class CommonConfig:
    """What every command that touches data needs."""

    home: Path  # TORUS_HOME: state of this machine, sockets included
    meta_url: str  # "sqlite:PATH" or "etcd://HOST:PORT,.../PREFIX?ca=...", no password in it
    data_dir: Path
    log_level: str = "info"  # debug, info, warning, error
    log_format: Literal["auto", "human", "json"] = "auto"  # auto, human, json
    map_cache_bytes: int = 256 << 20  # bound of the resident maps of all volumes together
    on_full: str = "pause"  # or "error": what a write does when no slot is free
    checkpoint_interval_s: float = 60.0
    gc_rate_bytes: int = GC_RATE_BYTES_DEFAULT  # per second, in the background; 0: none
    erasure: Literal["auto", "kernel", "zfec"] = "auto"  # what computes shards
    tls_cert: Path | None = None  # of this host, for peers over TCP; all three or none
    tls_key: Path | None = None
    tls_ca: Path | None = None  # who signs the certificates of peers


def is_shared(meta_url: str) -> bool:
    """Tell whether a metadata store can be that of several nodes: of a cluster."""
    return not meta_url.startswith("sqlite:")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What `torus node` runs with."""

    common: CommonConfig
    size_bytes: int | None  # None: what the data directory was made with
    nbd_addresses: tuple[str, ...]  # "HOST:PORT" or "unix:PATH"; may be empty
    http_address: str | None  # None: no /metrics and /healthz
    punch: bool = True  # give freed slots back to the host's file system
    trash_grace_s: float = TRASH_GRACE_S  # how long a deleted chunk can be taken back
    data_dirs: tuple[Path, ...] = ()  # each a disk of its own; the first is common.data_dir
    peer_address: str = "auto"  # HOST:PORT for peers of other hosts, "auto" or "none"
    zone: str | None = None  # None: as it was, "" for a new disk
    weight: int | None = None  # None: as it was, the size in GiB for a new disk
    join: bool = True  # new disks get data at once
    auto_out_s: float = AUTO_OUT_S  # a disk that is gone so long is put out of the ring
    repair_rate_bytes: int = REPAIR_RATE_BYTES_DEFAULT  # pulled by each disk per second; 0: none
    scrub_rate_bytes: int | None = None  # read by each disk per second; None: what it takes


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What `torus nbd serve` runs with."""

    common: CommonConfig
    volumes: tuple[str, ...]
    nbd_addresses: tuple[str, ...]  # one or more
    read_only: bool = False
    http_address: str | None = None
    standby: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its key in the file, whence its variable's and its flag's names follow."""

    key: str  # "meta", "node.size": a dot is a table of the file
    default: str
    meaning: str
    many: bool = False  # a list in the file, commas in the environment, a repeated flag
    switch: bool = False  # true or false

    @property
    def variable(self) -> str:
        """Return the name of the environment variable."""
        return "TORUS_" + self.key.upper().replace(".", "_").replace("-", "_")


OPTIONS: tuple[Option, ...] = (
    Option("home", "", "folder of this machine's state; default /var/lib/torus for root"),
    Option(
        "meta",
        "",
        "metadata store, sqlite:PATH or etcd://HOST:PORT,.../PREFIX; "
        "default sqlite:HOME/meta.sqlite",
    ),
    Option("meta-ca", "", "file with the CA that etcd's certificates are from; makes it TLS"),
    Option("meta-cert", "", "file with the certificate that etcd is shown"),
    Option("meta-key", "", "file with the key of that certificate"),
    Option("meta-user", "", "user that etcd knows"),
    Option("meta-password-file", "", "file whose first line is that user's password"),
    Option("data-dir", "", "folders of the node's segments; default HOME/data", many=True),
    Option("output", "table", "table or json"),
    Option("log-level", "info", "debug, info, warning or error"),
    Option("log-format", "auto", "auto (human on a terminal, else json), human or json"),
    Option("map-cache", "256MiB", "bound of the block maps in memory, all volumes together"),
    Option("on-full", "pause", "what a write does on a full pool: pause or error"),
    Option("checkpoint-interval", "60s", "longest time between two checkpoints of a volume"),
    Option("gc-rate", "64MiB", "what background collection may move in a second, or none"),
    Option("erasure", "auto", "what computes shards: auto (the kernel, else zfec), kernel or zfec"),
    Option("tls-cert", "", "certificate of this host for the peer protocol over TCP"),
    Option("tls-key", "", "its private key"),
    Option("tls-ca", "", "certificates of those who sign for peers"),
    Option("node.size", "", "limit of each data directory; required when it is made"),
    Option("node.peer", "auto", "HOST:PORT where nodes of other hosts reach this one, or none"),
    Option("node.zone", "", "where the node's disks stand: copies go to distinct zones"),
    Option("node.weight", "", "share of the data of each disk; default its size in GiB"),
    Option("node.join", "true", "new disks get data at once", switch=True),
    Option("node.auto-out", "10m", "a disk that is gone so long is put out of the ring, or none"),
    Option("node.repair-rate", "128MiB", "what each disk may pull in a second, or none"),
    Option("node.scrub-rate", "auto", "what each disk may read again in a second, auto or none"),
    Option("node.nbd", DEFAULT_NBD_ADDRESS, "where the node answers NBD, or none", many=True),
    Option("node.http", DEFAULT_HTTP_ADDRESS, "where /metrics and /healthz answer, or none"),
    Option("node.punch", "true", "give freed space back to the file system", switch=True),
    Option("node.trash-grace", "30s", "how long a deleted chunk is kept, or none"),
    Option("gateway.listen", "", "TCP addresses of `torus nbd serve`", many=True),
    Option("gateway.socket", "", "unix sockets of `torus nbd serve`", many=True),
    Option("gateway.read-only", "false", "refuse writes from clients", switch=True),
    Option("gateway.standby", "false", "attach at the first request", switch=True),
    Option("gateway.http", "none", "where the gateway answers /metrics, or none"),
)
_BY_KEY = {option.key: option for option in OPTIONS}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as text, and who said so, for messages."""

    text: tuple[str, ...]  # one element unless the option takes many
    origin: str  # "--size", "TORUS_NODE_SIZE", "FILE: node.size", "default"


class Settings:
    """The values of all options, after precedence."""

    def __init__(
        self, environment: Mapping[str, str], file_path: Path | None, file: Mapping[str, Setting]
    ) -> None:
        self._environment = environment
        self._file = file
        self.file_path = file_path

    def get(self, key: str, flag: tuple[str, ...] | None = None, name: str = "") -> Setting:
        """Return the setting of ``key``; ``flag`` is what the command line's ``name`` said."""
        option = _BY_KEY[key]
        if flag is not None:
            return Setting(flag, name or "--" + key.rsplit(".", 1)[-1])
        text = self._environment.get(option.variable)
        if text:
            return Setting(_split(text) if option.many else (text,), option.variable)
        if key in self._file:
            return self._file[key]
        return Setting((option.default,) if option.default else (), "default")


def load_settings(environment: Mapping[str, str], explicit_file: str | None = None) -> Settings:
    """Read the configuration file that applies, if any, and return all settings.

    ``explicit_file`` is `--config`; then TORUS_CONFIG; then the user's file; then the
    system's.  The first one that exists is read, they are not merged.

    Raises: ConfigError when a named file is missing, or one is unreadable, is not TOML or
    holds an unknown key or a value of the wrong kind.
    """
    named = explicit_file or environment.get("TORUS_CONFIG")
    if named:
        path = Path(named)
        return Settings(environment, path, _read_file(path))
    for path in _default_files(environment):
        if path.is_file():
            return Settings(environment, path, _read_file(path))
    return Settings(environment, None, {})


def default_home(environment: Mapping[str, str]) -> Path:
    """Return TORUS_HOME's default: the system's folder for root, else the XDG state folder."""
    if os.geteuid() == 0:
        return Path(SYSTEM_HOME)
    return _user_folder(environment, "XDG_STATE_HOME", ".local/state") / "torus"


def _default_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    user = _user_folder(environment, "XDG_CONFIG_HOME", ".config") / "torus" / "config.toml"
    return (user, Path(SYSTEM_FILE))


def _user_folder(environment: Mapping[str, str], variable: str, fallback: str) -> Path:
    """Return an XDG base folder; a relative value is ignored, as that specification asks."""
    text = environment.get(variable, "")
    if text.startswith("/"):
        return Path(text)
    home = environment.get("HOME")
    return (Path(home) if home else Path("~").expanduser()) / fallback


def _read_file(path: Path) -> dict[str, Setting]:
    import tomllib  # 12 ms that a start without a file does not pay

    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError(f"configuration file {path} cannot be read: {reason}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"configuration file {path} is not TOML: {exc}") from exc
    settings: dict[str, Setting] = {}
    for key, value in _flatten(tree):
        option = _BY_KEY.get(key)
        if option is None:
            raise ConfigError(f"{path}: unknown key {key!r}", hint=_nearest(key))
        settings[key] = Setting(_texts(option, value, path), f"{path}: {key}")
    return settings


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return all leaves as ("table.key", value); '_' and '-' mean the same in a key."""
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        key = prefix + name.replace("_", "-")
        if isinstance(value, dict):
            leaves += _flatten(value, key + ".")
        else:
            leaves.append((key, value))
    return leaves


def _texts(option: Option, value: Any, path: Path) -> tuple[str, ...]:
    """Return a value of the file as the text that a flag would have had."""
    wrong = ConfigError(
        f"{path}: {option.key} = {value!r} is not {_kind(option)}",
    )
    if option.switch:
        if not isinstance(value, bool):
            raise wrong
        return ("true" if value else "false",)
    values = value if option.many and isinstance(value, list) else [value]
    if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in values):
        raise wrong
    return tuple(str(one) for one in values)


def _kind(option: Option) -> str:
    if option.switch:
        return "true or false"
    return "a text or a list of texts" if option.many else "a text or a number"


def _nearest(key: str) -> str:
    import difflib

    close = difflib.get_close_matches(key, _BY_KEY, n=1, cutoff=0.5)
    if not close:
        tail = key.rsplit(".", 1)[-1]
        close = [known for known in _BY_KEY if known.rsplit(".", 1)[-1] == tail][:1]
    return f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(_BY_KEY)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())

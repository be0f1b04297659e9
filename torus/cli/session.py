"""What one run of the command line has: arguments, settings, output, the metadata store.

Decides how a setting's text becomes a value and whom a wrong one is blamed on.  Opening a
store is left to `torus.metadata.open`.

Implements docs/configuration.md, "Precedence".
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torus.cli.output import Output
from torus.cli.sizes import parse_seconds, parse_size
from torus.config import CommonConfig, Setting, Settings, default_home, load_settings
from torus.errors import ConfigError, NotFound, UsageError
from torus.metadata.base import MetadataStore
from torus.metadata.etcd_url import OPTIONS as ETCD_OPTIONS
from torus.metadata.etcd_url import is_etcd, with_options
from torus.net.address import parse_address

Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=str)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Session:
    """One run: everything that a command needs and did not compute itself."""

    def __init__(
        self, arguments: argparse.Namespace, environment: Mapping[str, str], output: Output
    ) -> None:
        self.arguments = arguments
        self.environment = environment
        self.output = output
        self._settings: Settings | None = None
        output.as_json = self.choice("output", ("table", "json")) == "json"

    @property
    def settings(self) -> Settings:
        """Return the settings; the configuration file is read once."""
        if self._settings is None:
            explicit = getattr(self.arguments, "config", None)
            self._settings = load_settings(self.environment, explicit)
        return self._settings

    def setting(self, key: str) -> Setting:
        """Return an option's text; its flag's value is found under the key's final part."""
        name = key.rsplit(".", 1)[-1]
        flag = getattr(self.arguments, name.replace("-", "_"), None)
        if isinstance(flag, bool):
            flag = "true" if flag else "false"
        texts = flag if flag is None or isinstance(flag, list) else [flag]
        return self.settings.get(key, None if texts is None else tuple(texts), "--" + name)

    def value(self, key: str, convert: Callable[[str, str], Value]) -> Value | None:
        """Return an option's value, or None when it is not set anywhere.

        ``convert(text, what)`` raises UsageError; a wrong text that did not come from the
        command line is raised as ConfigError.
        """
        setting = self.setting(key)
        if not setting.text:
            return None
        try:
            return convert(setting.text[-1], setting.origin)
        except UsageError as exc:
            raise self.blame(key, exc.message, exc.hint) from exc

    def choice(self, key: str, allowed: tuple[Choice, ...]) -> Choice:
        """Return an option that must be one of ``allowed``."""

        def convert(text: str, what: str) -> Choice:
            for one in allowed:
                if one == text:
                    return one
            raise UsageError(f"{what} {text!r} is not one of: {', '.join(allowed)}")

        return self.value(key, convert) or allowed[0]

    def size(self, key: str) -> int | None:
        """Return an option that is a size, in bytes."""
        return self.value(key, parse_size)

    def switch(self, key: str) -> bool:
        """Return an option that is true or false."""

        def convert(text: str, what: str) -> bool:
            if text.lower() not in _TRUE + _FALSE:
                raise UsageError(f"{what} {text!r} is neither true nor false")
            return text.lower() in _TRUE

        return bool(self.value(key, convert))

    def path(self, key: str) -> Path | None:
        """Return an option that is a path; a leading ~ is the user's folder."""
        return self.value(key, lambda text, what: Path(text).expanduser().absolute())

    def paths(self, key: str) -> tuple[Path, ...]:
        """Return an option that lists paths."""
        texts = self.setting(key).text
        return tuple(Path(text).expanduser().absolute() for text in texts)

    def addresses(self, key: str, prefix: str = "") -> tuple[str, ...]:
        """Return an option that lists addresses; the word `none` stands for none at all.

        ``prefix`` goes before each: "unix:" makes an address of a path.
        """
        setting = self.setting(key)
        texts = [text for text in setting.text if text != "none"]
        if texts and len(texts) < len(setting.text):
            raise self.blame(key, f"{setting.origin} names addresses beside 'none'")
        try:
            return tuple(_absolute(str(parse_address(prefix + text))) for text in texts)
        except UsageError as exc:
            raise self.blame(key, f"{setting.origin}: {exc.message}", exc.hint) from exc

    def blame(self, key: str, message: str, hint: str | None = None) -> UsageError | ConfigError:
        """Return the error for a wrong value: whose it is depends on where it stood."""
        flag = self.setting(key).origin.startswith("--")
        return (UsageError if flag else ConfigError)(message, hint=hint)

    def common(self) -> CommonConfig:
        """Return the part of the configuration that every command shares."""
        home = self.path("home") or default_home(self.environment)
        return CommonConfig(
            home=home,
            meta_url=self._meta_url(home),
            data_dir=(*self.paths("data-dir"), home / "data")[0],
            log_level=self.choice("log-level", ("info", "debug", "warning", "error")),
            log_format=self.choice("log-format", ("auto", "human", "json")),
            map_cache_bytes=self.size("map-cache") or 0,
            on_full=self.choice("on-full", ("pause", "error")),
            gc_rate_bytes=self.value("gc-rate", rate) or 0,
            checkpoint_interval_s=self.value("checkpoint-interval", parse_seconds) or 0.0,
            erasure=self.choice("erasure", ("auto", "kernel", "zfec")),
            tls_cert=self.path("tls-cert"),
            tls_key=self.path("tls-key"),
            tls_ca=self.path("tls-ca"),
        )

    @contextmanager
    def metadata(self, *, make: bool = False) -> Iterator[MetadataStore]:
        """Open the metadata store; one that does not exist is made only with ``make``.

        Raises: NotFound when there is none and ``make`` is False.
        """
        from torus.clock import SystemClock
        from torus.metadata.open import open_metadata

        home = self.path("home") or default_home(self.environment)
        try:
            # a mistyped --meta must not leave an empty store behind and look like "no volumes"
            store = open_metadata(self._meta_url(home), SystemClock(), create=make)
        except NotFound as exc:
            exc.hint = (
                "start 'torus node' or make a volume with 'torus volume create'; --meta, --home "
                "or TORUS_META name another place; if it was lost: 'torus recover'"
            )
            raise
        try:
            yield store
        finally:
            store.close()

    def _meta_url(self, home: Path) -> str:
        setting = self.setting("meta")
        if not setting.text:
            return f"sqlite:{home / 'meta.sqlite'}"
        return self.etcd_url(setting.text[-1])

    def etcd_url(self, url: str) -> str:
        """Return an etcd URL with how to reach it as the settings say; others as they are."""
        if not is_etcd(url):
            return url
        options = {name: self.setting(f"meta-{name}").text for name in ETCD_OPTIONS}
        return with_options(url, {name: text[-1] for name, text in options.items() if text})


def rate(text: str, what: str) -> int:
    """Return bytes a second; 0 for `none`.  Raises: UsageError."""
    return 0 if text.strip().lower() in ("none", "0") else parse_size(text, what)


def _absolute(address: str) -> str:
    """Return ``address`` so that processes in other folders understand it, too."""
    if not address.startswith("unix:"):
        return address
    return f"unix:{Path(address.removeprefix('unix:')).expanduser().absolute()}"

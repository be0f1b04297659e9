"""Mutual TLS between peers: contexts made from files.

Decides what a peer must show: a certificate that the cluster's own authority signed.  The host's
name in it is not compared, because a node is known by its disk and by the cluster's secret
(docs/protocol.md, "Proof"), wherever it runs.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from torus.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """This process's certificate (with what it needs up to the authority), its key, and the
    authorities that other peers' certificates must be signed by; all PEM."""

    cert: Path
    key: Path
    ca: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a listener, which asks every client for a certificate.

    Raises: ConfigError naming the file and what is wrong with it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, files)
    context.num_tickets = 0  # nobody resumes: connections live long
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of connections to nodes.

    Raises: ConfigError naming the file and what is wrong with it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    for option, path in (("cert", files.cert), ("key", files.key), ("ca", files.ca)):
        try:
            with path.open("rb") as file:
                empty = not file.read(1)
        except OSError as exc:
            raise _unusable(option, path, os.strerror(exc.errno or 0)) from exc
        if empty:
            raise _unusable(option, path, "it is empty")
    try:
        context.load_verify_locations(cafile=files.ca)
    except ssl.SSLError as exc:
        raise _unusable("ca", files.ca, f"no certificates in PEM form ({_why(exc)})") from exc
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            reason = f"it is not the key of the certificate in {files.cert}"
            raise _unusable("key", files.key, reason) from exc
        if _is_certificate(files.cert):
            raise _unusable("key", files.key, f"no private key in PEM form ({_why(exc)})") from exc
        raise _unusable("cert", files.cert, f"no certificate in PEM form ({_why(exc)})") from exc
    except _Encrypted as exc:
        raise _unusable("key", files.key, "it needs a password, which cannot be given") from exc


class _Encrypted(Exception):
    """The key asks for a password."""


def _no_password() -> str:
    raise _Encrypted


def _is_certificate(path: Path) -> bool:
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        probe.load_verify_locations(cafile=path)
    except ssl.SSLError:
        return False
    return bool(probe.cert_store_stats()["x509"])


def _why(exc: ssl.SSLError) -> str:
    return (exc.reason or str(exc)).lower().replace("_", " ")


def _unusable(option: str, path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"--tls-{option} {path} cannot be used: {reason}",
        hint="docs/operations.md says how certificates for a cluster are made",
    )


def failure(exc: ssl.SSLError) -> str:
    """Return why a handshake failed, for a message."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the other side's certificate is refused: {exc.verify_message}"
    return _why(exc)

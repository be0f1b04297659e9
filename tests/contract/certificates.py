"""Certificates of a made-up authority, for tests: made once per process with openssl."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from torus.net.tls import TlsFiles

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _authority(folder: Path, name: str) -> None:
    _openssl("req", "-x509", *_CURVE, "-keyout", f"{name}.key", "-out", f"{name}.pem",
             "-days", "2", "-subj", f"/CN={name}", folder=folder)  # fmt: skip


def _signed(folder: Path, name: str, authority: str) -> TlsFiles:
    _openssl("req", *_CURVE, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj",
             f"/CN={name}", folder=folder)  # fmt: skip
    _openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey",
             f"{authority}.key", "-CAcreateserial", "-out", f"{name}.pem", "-days", "2",
             folder=folder)  # fmt: skip
    return TlsFiles(folder / f"{name}.pem", folder / f"{name}.key", folder / f"{authority}.pem")


@functools.cache
def _made() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="torus-tls-"))
    for authority in ("ca", "other-ca"):
        _authority(folder, authority)
    _signed(folder, "node", "ca")
    _signed(folder, "stranger", "other-ca")
    return folder


def make_certificates(folder: Path) -> dict[str, TlsFiles]:
    """Return ``node`` of the authority, and ``stranger`` of another one which trusts the first."""
    made = _made()
    for path in made.iterdir():
        shutil.copy(path, folder / path.name)
    stranger = TlsFiles(folder / "stranger.pem", folder / "stranger.key", folder / "ca.pem")
    node = TlsFiles(folder / "node.pem", folder / "node.key", folder / "ca.pem")
    return {"node": node, "stranger": stranger}

"""Machines of our own on a network of our own: Linux namespaces joined by a bridge.

Each machine has a network with an address, a host name and a kernel boot id, so that processes
in two of them take each other for other hosts.  A way from one machine to another is cut in one
direction by a neighbour entry that leads nowhere: packets vanish, as in a network that is gone,
and nobody is told.  It needs root, and neither iptables nor a proxy that would close connections.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

_NOWHERE = "02:00:00:00:00:99"  # no machine has this hardware address
CENTRE = "centre"  # the namespace that the tests themselves run in


def can_make_networks() -> bool:
    """Say whether this process may make namespaces and a bridge here."""
    if os.geteuid() != 0 or any(shutil.which(one) is None for one in ("ip", "unshare", "nsenter")):
        return False
    name = f"tp{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    made = subprocess.run(
        ["ip", "link", "add", name, "type", "bridge"], capture_output=True, check=False
    )
    if made.returncode:
        return False
    subprocess.run(["ip", "link", "del", name], check=True)
    return True


class Network:
    """A bridge in the centre, which has ``inner`` addresses, and machines around it."""

    def __init__(self, names: Iterable[str], inner: int = 1) -> None:
        self._tag = f"t{os.getpid()}"
        self._subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._folder = Path(tempfile.mkdtemp(prefix="torus-net-"))
        self.inner = [f"{self._subnet}.{number + 1}" for number in range(inner)]
        self.addresses = {
            name: f"{self._subnet}.{number + 20}" for number, name in enumerate(names)
        }
        self._cut: set[tuple[str, str]] = set()
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        bridge = self._tag
        lines = [f"link add {bridge} type bridge", f"link set {bridge} up"]
        lines += [f"addr add {address}/24 dev {bridge}" for address in self.inner]
        for number, name in enumerate(self.addresses):
            lines += [
                f"netns add {self._space(name)}",
                f"link add {self._tag}v{number} type veth peer name eth0 netns {self._space(name)}",
                f"link set {self._tag}v{number} master {bridge} up",
            ]
        _ip("", lines)
        for name, address in self.addresses.items():
            _ip(self._space(name), [
                f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up",
            ])  # fmt: skip
            (self._folder / name).write_text(f"{uuid.uuid4()}\n")

    def _space(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def enter(self, name: str) -> list[str]:
        """Return what to put before a command that is to run on a machine; the process id stays."""
        script = (
            'mount --bind "$1" /proc/sys/kernel/random/boot_id && hostname "$2" && shift 2 && '
            'exec "$@"'
        )
        return [
            "nsenter", f"--net=/run/netns/{self._space(name)}", "unshare", "--mount", "--uts",
            "sh", "-c", script, "sh", str(self._folder / name), name,
        ]  # fmt: skip

    # --- cutting ------------------------------------------------------------------------

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing pass from one machine to another; `CENTRE` means all of its addresses."""
        targets = self.inner if receiver == CENTRE else [self.addresses[receiver]]
        for address in targets:
            self.cut_from_address(sender, address)

    def cut_from_address(self, sender: str, address: str) -> None:
        """Let nothing pass from a machine to one address."""
        self._cut.add((sender, address))
        device = self._tag if sender == CENTRE else "eth0"
        _ip("" if sender == CENTRE else self._space(sender), [
            f"neigh replace {address} lladdr {_NOWHERE} dev {device} nud permanent"
        ])  # fmt: skip

    def isolate(self, name: str) -> None:
        """Cut a machine off from everybody, in both directions."""
        for other in (*self.addresses, CENTRE):
            if other != name:
                self.cut(name, other)
                self.cut(other, name)

    def heal(self) -> None:
        """Let everything pass again."""
        for sender, address in self._cut:
            device = self._tag if sender == CENTRE else "eth0"
            _ip("" if sender == CENTRE else self._space(sender), [
                f"neigh del {address} dev {device}"
            ])  # fmt: skip
        self._cut.clear()

    def close(self) -> None:
        """Take everything down; what is not there is not missed."""
        for name in self.addresses:
            subprocess.run(
                ["ip", "netns", "del", self._space(name)], capture_output=True, check=False
            )
        subprocess.run(["ip", "link", "del", self._tag], capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def _ip(space: str, lines: list[str]) -> None:
    command = ["ip", *(["-n", space] if space else []), "-batch", "-"]
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"ip refused {lines}: {done.stderr}")


@contextlib.contextmanager
def network_of(names: Iterable[str], inner: int = 1) -> Iterator[Network]:
    """Give a network for the length of a block."""
    network = Network(names, inner)
    try:
        yield network
    finally:
        network.close()

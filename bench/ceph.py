"""Ceph RBD behind qemu-nbd, started by hand in a folder: the peer of the cluster's benchmark.

Decides the settings: one monitor, one manager, three OSDs with bluestore on plain files, no
cephx, pools of two copies, no cache in librbd.  Debian's packages are enough: ceph-mon, ceph-mgr,
ceph-osd, ceph-common, qemu-utils and qemu-block-extra.  Nothing here needs systemd or root's
/etc/ceph.
"""

import os
import shutil
import subprocess
import time
import uuid

from bench import processes
from bench.cluster_servers import COPIES, NODES, ClusterSite, free_ports
from bench.processes import BenchError, ServerProcess
from bench.servers import START_TIMEOUT_S, fill, uri

PROGRAMS = {
    "ceph-mon": "ceph-mon",
    "ceph-mgr": "ceph-mgr",
    "ceph-osd": "ceph-osd",
    "ceph": "ceph-common",
    "rbd": "ceph-common",
    "monmaptool": "ceph-common",
    "qemu-nbd": "qemu-utils",
}
_BLOCK_BYTES = 10 << 30  # of each OSD's sparse file
_COMMAND_TIMEOUT_S = 60.0
_CLEAN_TIMEOUT_S = 120.0
_CONF = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket = {folder}/$cluster-$name.asok
log file = {folder}/log/$name.log
log to stderr = false
mon cluster log file = {folder}/log/cluster.log
crash dir = {folder}/crash
plugin dir = /usr/lib/ceph
mon data = {folder}/mon.$id
mgr data = {folder}/mgr.$id
osd data = {folder}/osd.$id
osd objectstore = bluestore
bluestore block create = true
bluestore block size = {block_bytes}
osd memory target = 939524096
osd crush chooseleaf type = 0
osd pool default size = {copies}
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
[client]
rbd cache = false
"""


class CephRbd:
    """One image of a Ceph cluster, served by qemu-nbd."""

    name = "ceph"

    def __init__(self, site: ClusterSite) -> None:
        self._site = site
        self._folder = site.work_dir / "ceph"
        self._conf = self._folder / "ceph.conf"
        self._socket = site.socket_dir / "ceph"
        self._running: list[ServerProcess] = []

    def start(self) -> None:
        """Start the cluster, make and fill the image.

        Raises:
            BenchError: A package is missing, or something did not come up.
        """
        missing = [package for name, package in PROGRAMS.items() if shutil.which(name) is None]
        if missing:
            raise BenchError(
                f"Ceph is not installed: apt-get install {' '.join(sorted(set(missing)))} "
                "ceph-osd qemu-block-extra"
            )
        (self._folder / "log").mkdir(parents=True)
        self._start_monitor()
        self._start_disks()
        self._ceph("osd", "pool", "create", "rbd", "32", "32", "replicated")
        self._ceph("osd", "pool", "application", "enable", "rbd", "rbd")
        self._wait_until_clean()
        self._run(
            "rbd",
            "-c",
            str(self._conf),
            "create",
            "image",
            "--size",
            f"{self._site.main_bytes >> 20}M",
        )
        argv = ["qemu-nbd", "-k", str(self._socket), "-f", "raw", "-x", "image", "-t", "-e", "4"]
        argv += ["--cache=none", "--discard=unmap", f"rbd:rbd/image:conf={self._conf}"]
        server = self._daemon(argv, "qemu-nbd")
        processes.wait_for_socket(server, self._socket, START_TIMEOUT_S)
        fill(self._socket, "image")

    def _start_monitor(self) -> None:
        fsid = str(uuid.uuid4())
        v2, v1 = free_ports(2)
        self._conf.write_text(
            _CONF.format(
                fsid=fsid,
                v2=v2,
                v1=v1,
                folder=self._folder,
                block_bytes=_BLOCK_BYTES,
                copies=COPIES,
            )
        )
        monmap = self._folder / "monmap"
        address = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(monmap))
        conf = ["-c", str(self._conf)]
        self._run("ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", str(monmap))
        self._daemon(["ceph-mon", *conf, "-f", "-i", "a"], "mon")
        (self._folder / "mgr.x").mkdir()
        self._daemon(["ceph-mgr", *conf, "-f", "-i", "x"], "mgr")

    def _start_disks(self) -> None:
        for number in range(NODES):
            conf = ["-c", str(self._conf), "-i", str(number)]
            (self._folder / f"osd.{number}").mkdir()
            osd_uuid = str(uuid.uuid4())
            self._ceph("osd", "new", osd_uuid, str(number))
            self._run("ceph-osd", *conf, "--mkfs", "--osd-uuid", osd_uuid)
            self._daemon(["ceph-osd", *conf, "-f"], f"osd{number}")

    def _wait_until_clean(self) -> None:
        deadline = time.monotonic() + _CLEAN_TIMEOUT_S
        while time.monotonic() < deadline:
            said = self._ceph("pg", "stat")
            if "active+clean" in said and "unknown" not in said and "peering" not in said:
                return
            time.sleep(0.2)
        raise BenchError(f"Ceph is not clean after {_CLEAN_TIMEOUT_S:.0f} s: {said.strip()}")

    def _daemon(self, argv: list[str], name: str) -> ServerProcess:
        server = processes.start(
            argv, self._folder / f"{name}.out", environment={"CEPH_CONF": str(self._conf)}
        )
        self._running.append(server)
        return server

    def _ceph(self, *words: str) -> str:
        return self._run("ceph", "-c", str(self._conf), "--connect-timeout", "30", *words)

    def _run(self, *argv: str) -> str:
        try:
            finished = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                check=False,
                cwd=self._folder,
                timeout=_COMMAND_TIMEOUT_S,
                env={**os.environ, "CEPH_CONF": str(self._conf)},
            )
        except subprocess.TimeoutExpired as exc:
            raise BenchError(f"{' '.join(argv[:4])} did not end: {self._tail()}") from exc
        if finished.returncode:
            raise BenchError(f"{' '.join(argv)}: {finished.stderr.strip()[-500:]}")
        return finished.stdout + finished.stderr

    def _tail(self) -> str:
        return " | ".join(server.log_tail() for server in self._running)

    def stop(self) -> None:
        """End qemu-nbd, then the daemons, by process id; calling it again does nothing."""
        while self._running:
            processes.stop(self._running.pop(), timeout_s=10.0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def main_uri(self) -> str:
        return uri(self._socket, "image")

    def many_uris(self) -> list[str]:
        return []

    def pids(self) -> list[int]:
        """Return all daemons and qemu-nbd."""
        return [server.pid for server in self._running]

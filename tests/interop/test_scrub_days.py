"""Bits that flip on the disks of real nodes: found, repaired while a copy is left, named when none
is, and never handed out."""

import errno
import json
import random
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import Cluster
from tests.disk_client import RequestFailed
from tests.processes import Machine, http_get, machine_in, wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
BLOCK = 4096
SEED = 20
SIZE = 12 * MIB


def flip(machine: Machine, block: bytes) -> None:
    """Flip a bit in the middle of wherever a block lies on a machine's disk."""
    found = 0
    for file in sorted((machine.home / "data").glob("segment-*.seg")):
        data = file.read_bytes()
        at = data.find(block)
        while at >= 0:
            found += 1
            with file.open("r+b") as handle:
                handle.seek(at + 2000)
                handle.write(bytes([data[at + 2000] ^ 0x10]))
            at = data.find(block, at + 1)
    assert found, f"the block is not on the disk of {machine.home}"


def scrub(machine: Machine, *words: str, code: int = 0) -> dict[str, Any]:
    """Scrub until it is done; return the last look."""
    done = subprocess.run(
        machine.command("scrub", *words, "--watch", "--interval", "200ms", "-o", "json"),
        env=machine.environment, capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    decoder, text, found = json.JSONDecoder(), done.stdout.strip(), {}
    while text:
        found, end = decoder.raw_decode(text)
        text = text[end:].strip()
    return dict(found["scrub"])


def contents() -> bytes:
    """Return what is written: no two blocks are the same."""
    return random.Random(SEED).randbytes(SIZE)


def block_of(data: bytes, number: int) -> bytes:
    """Return one block of what is written."""
    return data[number * BLOCK : (number + 1) * BLOCK]


def test_rot_is_repaired_from_copies_and_named_where_none_is_left(cluster: Cluster) -> None:
    """One copy rots: a deep scrub has it whole again. The same block rots in all copies: it is
    named by volume, address and snapshot, reads give EIO, all else is right; written over, it is
    well again in the volume and lost in the snapshot."""
    cluster.start("a", "b", "c")
    cluster.wait_ring(set(cluster.disks()))
    a, b, c = (cluster.machine(name) for name in "abc")
    a.run("volume", "create", "vm", "16MiB", "--redundancy", "replica:3")
    data = contents()
    with a.open("vm") as client:
        for at in range(0, SIZE, MIB):
            client.write(at, data[at : at + MIB])
        client.flush()
        a.run("volume", "snapshot", "create", "vm@before")

        bad = block_of(data, 700)
        flip(b, bad)
        found = scrub(a, "--deep")
        assert (found["found"]["rotten"], found["repaired"]["rotten"]) == (1, 1), found
        assert (found["open"], found["lost"], found["going_on"]) == (0, 0, False)
        assert found["last_deep"] is not None
        b_disks = [n["disks"] for n in found["nodes"] if n["node"] == cluster.node_id("b")]
        (told,) = [one for disk in b_disks[0] for one in disk["findings"]]
        assert (told["kind"], told["state"], told["name"]) == ("rotten", "repaired", "vm")
        assert f"{700 * BLOCK:#x}" in told["what"]
        assert scrub(b, "--deep")["found"]["rotten"] == 1, "nothing is found again"
        assert any(bad in file.read_bytes() for file in (b.home / "data").glob("segment-*.seg"))
        assert client.read(0, SIZE) == data
        assert a.run("volume", "check", "vm", "-o", "json").document["check"]["ok"]

        worse = block_of(data, 1500)
        for machine in (a, b, c):
            flip(machine, worse)
        found = scrub(a, "--deep", code=65)
        assert found["lost"] == 3
        assert found["lost_volumes"] == ["vm"]
        check_lost(a, client, data)
    status = a.status()
    assert any("torus volume check vm" in problem for problem in status["problems"])
    assert status["scrub"]["lost"] == 3
    # while a disk is away it may have the block: then nothing is lost; it is when it is back
    cluster.machine("b").services[-1].stop()
    cluster.start("b")

    def lost_again() -> bool:
        words = b.command("scrub", "--status", "-o", "json")
        done = subprocess.run(words, env=b.environment, capture_output=True, check=False)
        found = json.loads(done.stdout)["scrub"]
        assert found["open"] == 3, "a restart forgets nothing"
        return bool(found["lost"] == 3)

    wait_until(lost_again, "all disks say again that it is lost", 120)


def check_lost(machine: Machine, client: Any, data: bytes) -> None:
    """Block 1500 is lost everywhere: it is named, refused, and everything else is right."""
    at = 1500 * BLOCK
    report = machine.run("volume", "check", "vm", "-o", "json", code=65).document["check"]
    sides = {side["name"]: side["bad"] for side in report["sides"]}
    assert sides.keys() == {"vm", "vm@before"}
    for bad in sides.values():
        assert [(one["offset"], one["length"], one["lost"]) for one in bad] == [(at, BLOCK, True)]
    with pytest.raises(RequestFailed) as refused:
        client.read(at, BLOCK)
    assert refused.value.number == errno.EIO
    for start, stop in ((0, at), (at + BLOCK, SIZE)):
        for piece in range(start, stop, MIB):
            size = min(MIB, stop - piece)
            assert client.read(piece, size) == data[piece : piece + size]
    client.write(at, block_of(data, 3), durable=True)
    assert client.read(at, BLOCK) == block_of(data, 3)
    report = machine.run("volume", "check", "vm", "-o", "json", code=65).document["check"]
    sides = {side["name"]: side["bad"] for side in report["sides"]}
    assert sides["vm"] == []
    assert [one["offset"] for one in sides["vm@before"]] == [at]


def test_silent_node_is_waited_for(cluster: Cluster) -> None:
    """With the only good copy away damage is not called lost, and is repaired when it is back."""
    cluster.start("a", "b")
    cluster.wait_ring(set(cluster.disks()))
    a, b = cluster.machine("a"), cluster.machine("b")
    a.run("volume", "create", "vm", "16MiB", "--redundancy", "replica:2", "--min-copies", "1")
    data = contents()
    with a.open("vm") as client:
        for at in range(0, SIZE, MIB):
            client.write(at, data[at : at + MIB])
        client.flush()
        a.run("volume", "snapshot", "create", "vm@before")
    b.services[-1].kill()
    node = cluster.node_id("b")
    wait_until(lambda: not cluster.node_list()[node]["up"], "b is known to be gone", 30)
    flip(a, block_of(data, 700))
    found = scrub(a, "vm", "--deep", code=69)
    assert (found["open"], found["lost"]) == (1, 0)
    unknown = a.run("scrub", "--status", code=69)
    assert "waiting" in unknown.err
    cluster.start("b")

    def repaired() -> bool:
        return bool(a.run("scrub", "--status", "-o", "json").document["scrub"]["open"] == 0)

    wait_until(repaired, "the damage is repaired by itself", 90)
    assert scrub(a, "--deep")["lost"] == 0
    with a.open("vm") as client:
        assert client.read(0, SIZE) == data


def test_pause_holds_for_the_whole_cluster(cluster: Cluster) -> None:
    """Also for a disk that was not up when it was said, and for one that joins later; begun tours
    wait; it is told since when and by whom."""
    cluster.start("a", "b")
    cluster.wait_ring(set(cluster.disks()))
    a = cluster.machine("a")
    cluster.machine("b").services[-1].stop()
    a.run("scrub", "--pause")
    first = a.run("scrub", "--status", "-o", "json", code=69).document["scrub"]
    assert first["paused"] == 1
    assert first["paused_by"].endswith("@" + socket.gethostname())
    a.run("scrub", "--pause")
    cluster.start("b", "c")
    found = a.run("scrub", "--status", "-o", "json").document["scrub"]
    disks = [disk for node in found["nodes"] for disk in node["disks"]]
    assert [disk["state"] for disk in disks] == ["paused"] * 3
    assert found["paused_since"] == first["paused_since"], "a second pause changes nothing"
    paused = f"3 disks PAUSED since {found['paused_since']} by {found['paused_by']}"

    def is_shown() -> bool:
        # The ring is frozen for a moment by the node that was away: a problem of its own.
        return a.status()["health"] == "ok" and paused in a.run("status").out

    wait_until(is_shown, "the status is good and says that scrubbing is paused", 90)
    assert a.status()["scrub"]["paused_by"] == found["paused_by"]

    a.run("scrub", "--resume")
    found = a.run("scrub", "--status", "-o", "json").document["scrub"]
    assert (found["paused"], found["paused_since"], found["paused_by"]) == (0, None, None)
    a.run("scrub", "--pause")
    assert scrub(a)["paused"] == 0, "to begin a tour ends a pause"


def test_single_machine_tells_and_counts(socket_folder: Path) -> None:
    """There is nothing to repair from: everything is told, by command, status and metrics; a lost
    slot header comes back; a truncated segment is found."""
    with machine_in(socket_folder) as machine:
        node = machine.node("--http", "127.0.0.1:0")
        machine.run("volume", "create", "vm", "16MiB")
        data = contents()
        with machine.open("vm") as client:
            for at in range(0, SIZE, MIB):
                client.write(at, data[at : at + MIB])
            client.flush()
        machine.run("volume", "snapshot", "create", "vm@before")
        first = sorted((machine.home / "data").glob("segment-*.seg"))[0]
        with first.open("r+b") as handle:
            handle.seek(4096)
            handle.write(bytes(512))
        assert scrub(machine)["repaired"]["torn"] == 1
        flip(machine, block_of(data, 700))
        found = scrub(machine, "--deep", code=65)
        assert (found["found"]["rotten"], found["lost"]) == (1, 1)
        report = machine.run("volume", "check", "vm", "-o", "json", code=65).document["check"]
        for side in report["sides"]:
            assert [one["offset"] for one in side["bad"]] == [700 * BLOCK]
        http = node.events("node.ready")[-1]["http"]
        text = http_get(http, "/metrics")[1]
        assert 'torus_scrub_found_total{kind="rotten"} 1.0' in text
        assert "torus_scrub_lost 1.0" in text
        assert http_get(http, "/healthz")[0] == 200, "it serves"
        with first.open("r+b") as handle:
            handle.truncate(4096 + 2 * (4 << 20) + 8192)
        found = scrub(machine, code=65)
        assert found["found"]["missing"] >= 1

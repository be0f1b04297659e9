"""Differences and backups beside running nodes, and what qemu's and libnbd's tools say of them."""

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk_client import DiskClient
from tests.processes import Machine, machine_in, wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
SIZE = 40 * MIB
BLOCK = 4096


@pytest.fixture
def machines(socket_folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two clusters, each a machine with a running node, and a volume on the first."""
    folders = socket_folder / "a", socket_folder / "b"
    for folder in folders:
        folder.mkdir()
    with machine_in(folders[0]) as source, machine_in(folders[1]) as target:
        for machine in (source, target):
            machine.node(size="512MiB")
        source.run("volume", "create", "disk", str(SIZE))
        yield source, target
    for service in (*source.services, *target.services):
        assert "Traceback" not in service.text
        assert '"traceback"' not in service.text


def scribble(client: DiskClient, rng: random.Random, content: bytearray, steps: int) -> None:
    """Write and trim at random; ``content`` follows."""
    for _ in range(steps):
        length = 512 * rng.choice((1, 8, 8, 64, 500))
        offset = 512 * rng.randrange((SIZE - length) // 512 + 1)
        if rng.random() < 0.3:
            client.trim(offset, length)
            data = bytes(length)
        else:
            data = rng.randbytes(length)
            client.write(offset, data)
        content[offset : offset + length] = data


def ranges(machine: Machine, *words: str) -> list[tuple[int, int, str]]:
    """Return what `torus volume diff` lists."""
    found = machine.run("volume", "diff", *words, "-o", "json").document["diff"]["ranges"]
    return [(one["offset"], one["length"], one["type"]) for one in found]


def joined(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that touch."""
    found: list[tuple[int, int]] = []
    for offset, length in pieces:
        if found and sum(found[-1]) == offset:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((offset, length))
    return found


def test_diff_agrees_with_other_tools(
    machines: tuple[Machine, Machine], rng: random.Random
) -> None:
    """What has data, and what changed since a snapshot: three programs say the same."""
    machine, _ = machines
    content = bytearray(SIZE)
    client = machine.open("disk")
    for number in range(3):
        scribble(client, rng, content, 40)
        machine.run("volume", "snapshot", "create", f"disk@s{number}")
    client.close()
    for number in range(3):
        name = f"disk@s{number}"
        data = [(offset, length) for offset, length, _ in ranges(machine, name)]
        mapped = json.loads(machine.client("nbdinfo", "--map", "--json", machine.uri(name)))
        images = json.loads(
            machine.client("qemu-img", "map", "-f", "raw", "--output=json", machine.uri(name))
        )
        assert joined([(one["offset"], one["length"]) for one in mapped if not one["type"]]) == data
        assert joined([(one["start"], one["length"]) for one in images if one["data"]]) == data
        for base in range(number):
            changed = ranges(machine, f"disk@s{base}", name)
            context = f"torus:changed-since:s{base}"
            bitmap = json.loads(
                machine.client("nbdinfo", f"--map={context}", "--json", machine.uri(name))
            )
            assert joined([(one["offset"], one["length"]) for one in bitmap if one["type"]]) == (
                joined([(offset, length) for offset, length, _ in changed])
            )
    assert ranges(machine, "disk@s2", "disk") == []


def test_a_volume_in_use_is_compared(machines: tuple[Machine, Machine], rng: random.Random) -> None:
    """What its clients have written up to now counts; nothing is left behind."""
    machine, _ = machines
    with machine.open("disk") as client:
        client.write(0, rng.randbytes(MIB))
        machine.run("volume", "snapshot", "create", "disk@s")
        client.write(8 * BLOCK, rng.randbytes(BLOCK))
        client.trim(16 * BLOCK, 2 * BLOCK)
        expected = [(8 * BLOCK, BLOCK, "data"), (16 * BLOCK, 2 * BLOCK, "zero")]
        assert ranges(machine, "disk@s", "disk") == expected
        client.write(0, b"x" * 512)
        assert ranges(machine, "disk@s", "disk") == [(0, BLOCK, "data"), *expected]
        assert client.read(0, 512) == b"x" * 512
    listed = machine.run("volume", "snapshot", "list", "disk", "-o", "json").document["snapshots"]
    assert [one["name"] for one in listed] == ["s"]


def test_generations_through_a_pipe_while_the_volume_is_written(
    machines: tuple[Machine, Machine], rng: random.Random
) -> None:
    """export-diff | import-diff, eight times, under a client that never stops."""
    source, target = machines
    contents = []
    content = bytearray(SIZE)
    with source.open("disk") as client:
        for number in range(8):
            scribble(client, rng, content, 25)
            source.run("volume", "snapshot", "create", f"disk@g{number}")
            contents.append(bytes(content))
            since = ["--from", f"g{number - 1}"] if number else []
            words = source.command("volume", "export-diff", f"disk@g{number}", "-", *since)
            writing = threading.Thread(target=scribble, args=(client, rng, content, 50))
            with subprocess.Popen(
                words, env=source.environment, stdout=subprocess.PIPE
            ) as exporting:
                writing.start()
                done = subprocess.run(
                    target.command("volume", "import-diff", "-", "copy"),
                    env=target.environment, stdin=exporting.stdout, check=False,
                    stderr=subprocess.PIPE, timeout=60,
                )  # fmt: skip
                writing.join()
                assert (done.returncode, exporting.wait()) == (0, 0), done.stderr
    for number, expected in enumerate(contents):
        with target.open(f"copy@g{number}") as reader:
            assert reader.read(0, 16 * MIB) + reader.read(16 * MIB, 24 * MIB) == expected
    assert target.run("check", code=75).err  # its node runs


def test_an_interrupted_import_says_how_to_go_on(
    machines: tuple[Machine, Machine], rng: random.Random, tmp_path: Path
) -> None:
    """Ctrl-C while a pipe stalls, kill -9 at the same place: no snapshot, then all of it."""
    source, target = machines
    with source.open("disk") as client:
        client.write(0, b"a" * MIB)
        source.run("volume", "snapshot", "create", "disk@a")
        for at in range(1, 20):
            client.write(at * MIB, rng.randbytes(MIB))
        source.run("volume", "snapshot", "create", "disk@b")
    full, step = tmp_path / "full", tmp_path / "step"
    source.run("volume", "export-diff", "disk@a", full)
    source.run("volume", "export-diff", "disk@b", step, "--from", "a")
    target.run("volume", "import-diff", full, "copy")
    content = step.read_bytes()
    for number in (signal.SIGINT, signal.SIGKILL):
        importing = subprocess.Popen(
            target.command("volume", "import-diff", "-", "copy", "--rollback"),
            env=target.environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert importing.stdin is not None
        importing.stdin.write(content[: 12 * MIB])
        importing.stdin.flush()

        def is_begun(pid: int = importing.pid) -> bool:
            # more than a pipe holds was taken
            return int(Path(f"/proc/{pid}/io").read_text().split()[1]) > 11 * MIB

        wait_until(is_begun, "the import has taken the stream")
        importing.send_signal(number)
        said = importing.communicate(timeout=60)[1].decode()
        assert "Traceback" not in said
        assert "never retrieved" not in said
        if number == signal.SIGINT:
            assert importing.returncode == 130
            assert "between 'a' and 'b': import again with --rollback" in said
        snapshots = target.run("volume", "snapshot", "list", "copy", "-o", "json").document
        assert [one["name"] for one in snapshots["snapshots"]] == ["a"]
        assert "was changed since" in target.refused(64, "volume", "import-diff", step, "copy")
    target.run("volume", "import-diff", step, "copy", "--rollback")
    with source.open("disk@b") as theirs, target.open("copy@b") as ours:
        assert theirs.read(0, 20 * MIB) == ours.read(0, 20 * MIB)


def test_an_interrupted_export_is_resumed(
    machines: tuple[Machine, Machine], rng: random.Random, tmp_path: Path
) -> None:
    """Ctrl-C and kill -9 keep what was written; the file under its own name is whole."""
    source, _ = machines
    with source.open("disk") as client:
        for at in range(32):
            client.write(at * MIB, rng.randbytes(MIB))
    source.run("volume", "snapshot", "create", "disk@a")
    source.run("volume", "export-diff", "disk@a", tmp_path / "whole")
    path, partial = tmp_path / "x", tmp_path / "x.partial"
    for number in (signal.SIGINT, signal.SIGKILL):
        how = ["--resume"] if partial.exists() else []
        before = partial.stat().st_size if partial.exists() else 0
        exporting = subprocess.Popen(
            source.command("volume", "export-diff", "disk@a", path, *how),
            env=source.environment, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(
            lambda before=before: partial.exists() and partial.stat().st_size > before + MIB,
            "the export has begun",
        )
        exporting.send_signal(number)
        said = exporting.communicate(timeout=60)[1].decode()
        if exporting.returncode == 0:
            break  # it was faster than the signal
        assert "Traceback" not in said
        if number == signal.SIGINT:
            assert (exporting.returncode, "--resume goes on" in said) == (130, True)
        assert not path.exists()
    else:
        source.run("volume", "export-diff", "disk@a", path, "--resume")
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    source.run("volume", "snapshot", "delete", "disk@a")  # dead readers hold nothing


def test_the_nightly_script(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    """The one in docs/operations.md, three nights long; then a restore from its files."""
    source, target = machines
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    script = page.split("```sh\n#!/bin/sh\n")[1].split("```")[0]
    script = script.replace("volume=vm1", "volume=disk").replace("/backup/vm1", str(tmp_path))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "torus").write_text(f'#!/bin/sh\nexec {" ".join(source.command())} "$@"\n')
    (tools / "torus").chmod(0o755)
    nights = iter(("2026-01-01T030000", "2026-01-02T030000", "2026-01-03T030000"))
    environment = {**source.environment, "PATH": f"{tools}:{os.environ['PATH']}"}
    for number, night in enumerate(nights):
        (tools / "date").write_text(f"#!/bin/sh\necho {night}\n")
        (tools / "date").chmod(0o755)
        with source.open("disk") as client:
            client.write(number * MIB, bytes([number + 1]) * MIB)
        subprocess.run(["/bin/sh", "-c", script], env=environment, check=True, timeout=60)
    files = sorted(tmp_path.glob("*.tdiff"))
    assert len(files) == 3
    assert files[1].stat().st_size < MIB + 4096
    for file in files:
        target.run("volume", "import-diff", file, "restored")
    with target.open("restored") as client:
        assert [client.read(at * MIB, 512)[:1] for at in range(4)] == [b"\1", b"\2", b"\3", b"\0"]
    listed = source.run("volume", "snapshot", "list", "disk", "-o", "json").document["snapshots"]
    assert [one["name"] for one in listed] == ["2026-01-03T030000"]


def test_two_imports_at_once(
    machines: tuple[Machine, Machine], rng: random.Random, tmp_path: Path
) -> None:
    """One of them does it; the other is refused or finds it done."""
    source, target = machines
    with source.open("disk") as client:
        client.write(0, rng.randbytes(16 * MIB))
    source.run("volume", "snapshot", "create", "disk@a")
    source.run("volume", "export-diff", "disk@a", tmp_path / "full")
    codes: list[int] = []

    def take() -> None:
        words = target.command("volume", "import-diff", tmp_path / "full", "copy")
        codes.append(subprocess.run(words, env=target.environment, check=False).returncode)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 in codes
    assert set(codes) <= {0, 3, 75, 64}
    with source.open("disk@a") as theirs, target.open("copy@a") as ours:
        assert theirs.read(0, 16 * MIB) == ours.read(0, 16 * MIB)

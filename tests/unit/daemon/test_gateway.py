"""A gateway's control socket, and what killed gateways leave behind."""

import asyncio
import dataclasses
import os
import socket
import stat
from pathlib import Path

import pytest

from torus.clock import SystemClock
from torus.daemon.gateway import control_path_of, forget_dead_gateways
from torus.daemon.reach import Reach
from torus.metadata.base import Put
from torus.metadata.keys import GATEWAYS, gateway_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Gateway
from torus.volume.owner import this_process


def test_control_sockets_of_dead_gateways_are_removed(socket_folder: Path) -> None:
    """Only those that nobody listens on; the folder is this user's alone."""
    assert control_path_of(socket_folder, 7) == str(socket_folder / "gateways" / "7.ctl")
    folder = socket_folder / "gateways"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
        dead.bind(str(folder / "1.ctl"))
        living.bind(str(folder / "2.ctl"))
        living.listen()
        (folder / "notes").write_text("somebody's")
        control_path_of(socket_folder, 7)

        assert sorted(os.listdir(folder)) == ["2.ctl", "notes"]


def test_registrations_of_dead_gateways_are_removed() -> None:
    """Those of this machine whose process has ended; others may live."""
    me = this_process("gateway", "", SystemClock())
    mine = Gateway("a", me.host, me.machine_boot_id, me.pid, me.pid_start, ("x:1",), "/c", 1)
    known = (
        mine,
        dataclasses.replace(mine, gateway_id="b", pid_start=me.pid_start + 1),
        dataclasses.replace(mine, gateway_id="c", host="elsewhere"),
    )

    async def scenario() -> list[str]:
        metadata = AsyncMetadata(MemoryMetadata())
        for gateway in known:
            await metadata.commit((), (Put(gateway_key(gateway.gateway_id), gateway.to_bytes()),))
        reached = Reach(metadata, None, None, SystemClock())  # type: ignore[arg-type]
        await forget_dead_gateways(reached)
        left = [entry.key for entry in (await metadata.list(GATEWAYS)).entries]
        await metadata.close()
        return left

    assert asyncio.run(scenario()) == [gateway_key("a"), gateway_key("c")]


@pytest.mark.parametrize("pid", [1, 4_194_304])
def test_control_path_names_the_process(socket_folder: Path, pid: int) -> None:
    """So that a person finds it."""
    assert control_path_of(socket_folder, pid).endswith(f"/{pid}.ctl")

"""What torus costs in the kernel's path, beside nbd-client and qemu-nbd in the same boot."""

import json
from pathlib import Path

from tests.kernel.guest import OUT, STORE, Guest, check, expect, run

SECONDS = 10
ROUNDS = 3
SIZE = "64MiB"


def iops(device: str, direction: str) -> float:
    """Return operations of 4 KiB in a second, 32 at a time."""
    said = run(
        "fio", "--name=speed", f"--filename={device}", f"--rw=rand{direction}", "--bs=4k",
        "--ioengine=libaio", "--iodepth=32", "--direct=1", "--time_based",
        f"--runtime={SECONDS}", "--ramp_time=3", "--norandommap", "--output-format=json",
    )  # fmt: skip
    job = json.loads(said[said.index("{") :])["jobs"][0]
    return float(job[direction]["iops"])


def fill_device(device: str) -> None:
    """Write all of a device, so that nothing of it is a hole."""
    run("fio", "--name=fill", f"--filename={device}", "--rw=write", "--bs=1M", "--direct=1",
        seconds=900)  # fmt: skip


@check()
def as_fast_as_qemu_nbd(guest: Guest) -> None:
    """4 KiB random reads and writes, QD 32, in turns; the median of each must not be less."""
    guest.create("speed", SIZE)
    ours = guest.attach("speed")
    image = STORE / "speed.img"
    run("qemu-img", "create", "-q", "-f", "raw", "-o", "preallocation=full", image, "64M")
    run("qemu-nbd", "--fork", "-t", "-x", "x", "-f", "raw", "-k", "/run/q.sock", image)
    run("nbd-client", "-unix", "/run/q.sock", "/dev/nbd7", "-N", "x", "-b", "4096")
    theirs = "/dev/nbd7"
    found: dict[str, list[float]] = {}
    try:
        for device in (ours, theirs):
            fill_device(device)
        for _ in range(ROUNDS):
            for direction in ("read", "write"):
                for who, device in (("torus", ours), ("qemu-nbd", theirs)):
                    found.setdefault(f"{who} {direction}", []).append(iops(device, direction))
    finally:
        run("nbd-client", "-d", theirs)
        run("pkill", "qemu-nbd", code=None)
        guest.detach("speed")
        guest.torus("volume", "delete", "speed")
        image.unlink()
    medians = {name: round(sorted(values)[len(values) // 2]) for name, values in found.items()}
    Path(OUT / "speed.json").write_text(json.dumps({"medians": medians, "rounds": found}))
    print(medians, flush=True)
    for direction in ("read", "write"):
        torus, other = medians[f"torus {direction}"], medians[f"qemu-nbd {direction}"]
        expect(torus >= other, f"{direction}: torus {torus}, qemu-nbd {other} in a second")

"""Disks of the kernel's own driver, in machines of their own; the checks are those of tests/kernel.

``vm`` is Debian's kernel in QEMU's emulation, slow and the one that people have; ``uml`` the same
source as a process, which runs the host's Python at its full speed.  The short form is part of
`./dev test`: one machine for the checks, which ends with a power cut, and one that looks at what
is there afterwards; in User Mode Linux only where its kernel has been built.  `./dev kernel`
builds it, and does everything in both.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("TORUS_SEED", "20251122"))
WHOLE = os.environ.get("TORUS_KERNEL") == "whole"
CUTS = {"uml": 20, "vm": 3}  # where they take seconds, and where they take minutes
STORE_BYTES = 6 << 30
# A machine that is busy with other things may be slow: these only end what hangs.
BOOT_S = 1800
SHORT_S = 3600
WHOLE_MIB = 4096  # fifty gateways do not fit the 1,536 MiB of the short form
ALL_S = 8 * 3600

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


class Machine:
    """A machine's disk and folder; each run boots it anew."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.out = folder / "out"
        self.out.mkdir()
        self._kind = kind
        self._store = folder / "store.img"
        with open(self._store, "wb") as file:
            file.truncate(STORE_BYTES)

    def begin(self, *checks: str, seconds: int, seed: int = SEED) -> "subprocess.Popen[bytes]":
        """Boot and run checks; the store's disk loses what it has not flushed, if it can."""
        code = "import sys; sys.path.insert(0, '.'); from tests.kernel.guest import main;"
        command = f'.venv/bin/python -P -c "{code} sys.exit(main(sys.argv[1:]))" {" ".join(checks)}'
        environment = {
            **os.environ, "VM_OUT": str(self.out), "VM_DISKS": str(self._store),
            "VM_TIMEOUT": str(seconds), "VM_VOLATILE": str(seed),
        }  # fmt: skip
        if WHOLE:
            environment.setdefault("VM_MEM", str(WHOLE_MIB))
        return subprocess.Popen(
            [ROOT / "tests/kernel" / self._kind, f"TORUS_SEED={seed} {command}"],
            cwd=ROOT, env=environment,
        )  # fmt: skip

    def run(self, *checks: str, seconds: int) -> None:
        """Boot, run checks, and fail with their words if one of them fails."""
        judge(self.out, self.begin(*checks, seconds=seconds).wait())

    def run_until_cut(
        self, *checks: str, seconds: int, after_s: float, seed: int = SEED
    ) -> None:  # fmt: skip
        """Boot, run checks, the last of which asks for the cut; cut the power a while later."""
        asked = self.out / "cutting"
        asked.unlink(missing_ok=True)
        process = self.begin(*checks, "until_the_cut", seconds=seconds, seed=seed)
        while not asked.exists():
            if process.poll() is not None:
                judge(self.out, process.returncode or 1)
            time.sleep(0.1)
        time.sleep(after_s)
        kill: Callable[[int, int], None] = os.killpg if self._kind == "uml" else os.kill
        kill(int((self.out / ".pid").read_text()), signal.SIGKILL)
        process.wait()
        judge(self.out, 0)


def judge(out: Path, code: int) -> None:
    """Fail if a check of any boot failed, or the machine, which ended with ``code``, did not get
    so far."""
    path = out / "verdicts"
    lines = path.read_text().splitlines() if path.exists() else []
    verdicts: list[dict[str, Any]] = [json.loads(line) for line in lines]
    failed = [one for one in verdicts if not one["ok"]]
    assert not failed, "\n".join(f"{one['check']}: {one['message']}" for one in failed)
    assert code == 0, f"exit code {code}\n{(out / '.log').read_text()[-3000:]}"


def _kinds() -> list[str]:
    """Return the machines; User Mode Linux takes a kernel that only ./dev kernel builds."""
    if WHOLE or subprocess.run([ROOT / "tests/kernel/uml", "--built"]).returncode == 0:
        return ["vm", "uml"]
    return ["vm"]


@pytest.fixture(params=_kinds())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """One of either kind."""
    return Machine(request.param, tmp_path)


if not WHOLE:

    @pytest.mark.timeout(2 * SHORT_S + 600)
    def test_short_form(machine: Machine) -> None:
        """Files, growth, snapshots, kill and restart, refusals; then a power cut."""
        machine.run_until_cut("short", seconds=SHORT_S, after_s=3.0)
        machine.run("after_the_cut", seconds=BOOT_S)

else:

    @pytest.mark.timeout(ALL_S + 600)
    def test_everything(machine: Machine) -> None:
        """Every check."""
        machine.run("all", seconds=ALL_S)

    @pytest.mark.timeout(ALL_S)
    def test_power_cuts(machine: Machine, request: pytest.FixtureRequest) -> None:
        """Cut after cut, each at another moment; after each everything acknowledged is there."""
        cuts = int(os.environ.get("TORUS_CUTS", CUTS[request.node.callspec.params["machine"]]))
        for cut in range(cuts):
            seed = SEED + cut
            after_s = random.Random(seed).uniform(0.0, 8.0)
            print(f"cut {cut + 1} of {cuts}: seed {seed}, {after_s:.1f} s after it was asked for")
            before = ("after_the_cut",) if cut else ()
            machine.run_until_cut(*before, seconds=BOOT_S, after_s=after_s, seed=seed)
        machine.run("after_the_cut", seconds=BOOT_S)

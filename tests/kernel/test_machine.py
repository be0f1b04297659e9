"""Disks of Debian's own kernel, in a virtual machine; the checks are those of tests/kernel.

The short form is part of `./dev test`: one machine for the checks, which ends with a power cut,
and one that looks at what is there afterwards.  `./dev kernel` does everything, with 20 cuts.
"""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("TORUS_SEED", "20251122"))
WHOLE = os.environ.get("TORUS_KERNEL") == "whole"
CUTS = int(os.environ.get("TORUS_CUTS", "20" if WHOLE else "1"))
STORE_BYTES = 6 << 30

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


class Machine:
    """A virtual machine's disk and folder; each run boots it anew."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.out.mkdir()
        self._store = folder / "store.img"
        with open(self._store, "wb") as file:
            file.truncate(STORE_BYTES)

    def begin(self, *checks: str, seconds: int) -> "subprocess.Popen[bytes]":
        """Boot and run checks."""
        code = "import sys; sys.path.insert(0, '.'); from tests.kernel.guest import main;"
        command = f'.venv/bin/python -P -c "{code} sys.exit(main(sys.argv[1:]))" {" ".join(checks)}'
        environment = {
            **os.environ, "VM_OUT": str(self.out), "VM_DISKS": str(self._store),
            "VM_TIMEOUT": str(seconds),
        }  # fmt: skip
        return subprocess.Popen(
            [ROOT / "tests/kernel/vm", f"TORUS_SEED={SEED} {command}"], cwd=ROOT, env=environment
        )

    def run(self, *checks: str, seconds: int) -> None:
        """Boot, run checks, and fail with their words if one of them fails."""
        code = self.begin(*checks, seconds=seconds).wait()
        self.judge(code)

    def run_until_cut(self, *checks: str, seconds: int, after_s: float) -> None:
        """Boot, run checks, the last of which asks for the cut; cut the power a while later."""
        asked = self.out / "cutting"
        asked.unlink(missing_ok=True)
        process = self.begin(*checks, "until_the_cut", seconds=seconds)
        while not asked.exists():
            if process.poll() is not None:
                self.judge(process.returncode or 1)
            time.sleep(0.1)
        time.sleep(after_s)
        os.kill(int((self.out / ".pid").read_text()), signal.SIGKILL)
        process.wait()
        self.judge(0)

    def judge(self, code: int) -> None:
        """Fail if a check failed, or the machine did not get so far."""
        verdicts = self.verdicts()
        failed = [one for one in verdicts if not one["ok"]]
        assert not failed, "\n".join(f"{one['check']}: {one['message']}" for one in failed)
        assert code == 0, f"exit code {code}\n{(self.out / '.log').read_text()[-3000:]}"

    def verdicts(self) -> list[dict[str, object]]:
        """Return what the checks of all boots told."""
        path = self.out / "verdicts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


if not WHOLE:

    @pytest.mark.timeout(1500)
    def test_short_form(machine: Machine) -> None:
        """Files, growth, snapshots, kill and restart, refusals; then a power cut."""
        machine.run_until_cut("short", seconds=1000, after_s=3.0)
        machine.run("after_the_cut", seconds=400)

else:

    @pytest.mark.timeout(6 * 3600)
    def test_everything(machine: Machine) -> None:
        """Every check."""
        machine.run("all", seconds=5 * 3600)

    @pytest.mark.timeout(6 * 3600)
    def test_power_cuts(machine: Machine) -> None:
        """Cut after cut, each at another moment; after each everything acknowledged is there."""
        moments = random.Random(SEED)
        print(f"seed {SEED}, {CUTS} cuts")
        for cut in range(CUTS):
            before = ("after_the_cut",) if cut else ()
            machine.run_until_cut(*before, seconds=900, after_s=moments.uniform(0.0, 12.0))
        machine.run("after_the_cut", seconds=900)

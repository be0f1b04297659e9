"""How long until a volume answers: after a kill with much log to replay, after a clean stop.

The clock runs from the start of the ``torus node`` process to the first byte read through
NBD, so it holds the interpreter's start, opening the store, and attaching the volume.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from bench import fio
from bench.processes import BenchError
from bench.results import Value
from bench.servers import Torus

GIB = 1 << 30
BLOCK_BYTES = 4096
READ_TIMEOUT_S = 120.0
VOLUME = "attach"
# A write of 4 KiB takes at most this much log when it is alone in its record.
RECORD_BYTES_MAX = BLOCK_BYTES + 512


@dataclass(frozen=True, slots=True)
class Plan:
    """How often, and how much is written after the last checkpoint.

    A checkpoint is due after 1 GiB of log, so ``payload_bytes`` stays a little below it,
    and is written faster than the 60 s after which one is due as well.
    """

    rounds: int
    payload_bytes: int
    work_dir: Path


def run(torus: Torus, plan: Plan) -> list[Value]:
    """Return seconds until the first read after a kill, and after a clean stop."""
    torus.start_node()
    torus.create(VOLUME, GIB)
    torus.client(VOLUME).close()
    after_kill: list[float] = []
    after_stop: list[float] = []
    written = 0.0
    for round_index in range(plan.rounds):
        torus.stop()
        after_stop.append(_seconds_to_first_read(torus))
        written = _write_log(torus, plan, round_index)
        torus.kill()
        after_kill.append(_seconds_to_first_read(torus))
    note = f"{plan.payload_bytes >> 20} MiB of 4 KiB random writes in {written:.0f} s before it"
    return [
        Value("attach-after-kill", "s", tuple(after_kill), note),
        Value("attach-after-stop", "s", tuple(after_stop), "SIGTERM before it; 1 GiB volume"),
    ]


def _write_log(torus: Torus, plan: Plan, round_index: int) -> float:
    load = fio.Load("randwrite", BLOCK_BYTES, 32, 0.0, plan.payload_bytes, seed=round_index + 1)
    began = time.monotonic()
    fio.run(load, [torus.uri(VOLUME)], plan.work_dir)
    return time.monotonic() - began


def _seconds_to_first_read(torus: Torus) -> float:
    server = torus.start_node()
    deadline = time.monotonic() + READ_TIMEOUT_S
    while True:
        try:
            with torus.client(VOLUME) as client:
                client.read(0, BLOCK_BYTES)
                return (time.monotonic_ns() - server.started_ns) / 1e9
        except (OSError, BenchError) as error:
            if time.monotonic() > deadline or server.popen.poll() is not None:
                raise BenchError(
                    f"no read within {READ_TIMEOUT_S:.0f} s of the start: {error}; "
                    f"{torus.log_tail()}"
                ) from error
            time.sleep(0.01)

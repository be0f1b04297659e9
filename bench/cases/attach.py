"""How long until a volume answers: after a kill with much log to replay, after a clean stop.

The clock runs from the start of the ``torus node`` process to the first byte read through
NBD, so it holds the interpreter's start, opening the store, and attaching the volume.
"""

import json
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
CHECKPOINT_LOG_BYTES = 1 * GIB  # a checkpoint is due after this much (torus/limits.py)
# A 4 KiB write that is alone in its record takes this much log; together they take less.
RECORD_BYTES_MAX = BLOCK_BYTES + 512
# So this much never brings a checkpoint that would make the replay shorter.
PAYLOAD_BYTES = CHECKPOINT_LOG_BYTES // RECORD_BYTES_MAX * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Plan:
    """How often, and how much is written after the last checkpoint.

    The node runs with a checkpoint interval that does not fall into the run.
    """

    rounds: int
    payload_bytes: int
    work_dir: Path


def run(torus: Torus, plan: Plan) -> list[Value]:
    """Return seconds until the first read after a kill, and after a clean stop."""
    torus.node_options = ["--checkpoint-interval", "600s", "--log-format", "json"]
    torus.start_node()
    torus.create(VOLUME, GIB)
    torus.client(VOLUME).close()
    after_kill: list[float] = []
    after_stop: list[float] = []
    replayed: list[int] = []
    written_s = 0.0
    for round_index in range(plan.rounds):
        torus.stop()
        after_stop.append(seconds_to_first_read(torus, VOLUME))
        written_s = _write_log(torus, plan, round_index)
        torus.kill()
        after_kill.append(seconds_to_first_read(torus, VOLUME))
        replayed += _records_replayed(torus)
    note = (
        f"{plan.payload_bytes >> 20} MiB of 4 KiB random writes in {written_s:.0f} s before it; "
        f"records replayed: {replayed or 'not said in the log'}"
    )
    if 0 in replayed:
        raise BenchError(f"a restart after a kill replayed nothing ({replayed}): nothing to time")
    return [
        Value("attach-after-kill", "s", tuple(after_kill), note),
        Value("attach-after-stop", "s", tuple(after_stop), "SIGTERM before it; 1 GiB volume"),
    ]


def _write_log(torus: Torus, plan: Plan, round_index: int) -> float:
    load = fio.Load("randwrite", BLOCK_BYTES, 32, 0.0, plan.payload_bytes, seed=round_index + 1)
    began = time.monotonic()
    fio.run(load, [torus.uri(VOLUME)], plan.work_dir)
    return time.monotonic() - began


def _records_replayed(torus: Torus) -> list[int]:
    """Return what the node logged at its last attach, or nothing if it does not log that."""
    replayed: list[int] = []
    for line in torus.log_lines():
        if '"volume.attached"' in line:
            event = json.loads(line)
            replayed = [int(event["records"])] if event.get("volume") == VOLUME else replayed
    return replayed


def seconds_to_first_read(torus: Torus, volume: str) -> float:
    """Start the node; return the time from its start to the first byte read of ``volume``.

    Raises:
        BenchError: None came.
    """
    server = torus.start_node()
    deadline = time.monotonic() + READ_TIMEOUT_S
    while True:
        try:
            with torus.client(volume) as client:
                client.read(0, BLOCK_BYTES)
                return (time.monotonic_ns() - server.started_ns) / 1e9
        except (OSError, BenchError) as error:
            if time.monotonic() > deadline or server.popen.poll() is not None:
                raise BenchError(
                    f"no read within {READ_TIMEOUT_S:.0f} s of the start: {error}; "
                    f"{torus.log_tail()}"
                ) from error
            time.sleep(0.01)

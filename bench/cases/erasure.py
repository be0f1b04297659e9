"""Encode and decode on one core, beside zfec and ISA-L, on the same data in one run.

Run: python -m bench.cases.erasure [--rounds N] [--check] [--kernel NAME].
ISA-L is Debian's libisal2 (``apt-get install libisal2``), called through ctypes with our
matrix, so that all three make the same bytes, which is checked.  Without it its column is
left out and its goal counts as not measured.

Rounds alternate: all engines once, then again, in an order that rotates.  A figure is
megabytes of data per second of the thread's processor time, at the best round: what others
do on the machine only makes rounds slower.  Decoding gives back as many lost data shards as
the code bears.
"""

import argparse
import ctypes
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zfec  # type: ignore[import-untyped]

from bench.results import markdown_table
from torus._fast.erasure import Code, kernel_name

SCHEMES = ((2, 1), (4, 2), (8, 3), (10, 4))
CONTENT_BYTES = {"4 MiB chunk": 4 << 20, "256 KiB": 256 << 10}
GOALS = {"isal": 0.8, "zfec": 10.0}
TIMED_BYTES = 4 << 20  # of data between two looks at the clock
ROUNDS = 40
LIBRARY = "libisal.so.2"
BLOCK_BYTES = 4096


@dataclass(slots=True)
class Row:
    """One operation on one code: what each engine does, and how long it took at best."""

    name: str
    data_bytes: int
    calls: dict[str, Callable[[], object]]
    best_s: dict[str, float] = field(default_factory=dict)

    def rate(self, engine: str) -> float:
        """Return megabytes of data per second of processor time."""
        return self.data_bytes / self.best_s[engine] / 1e6

    def ratio(self, engine: str) -> float:
        """Return how many times as fast as another engine torus is."""
        return self.best_s[engine] / self.best_s["torus"]


class Isal:
    """ISA-L's sums of products over buffers, by any matrix."""

    def __init__(self) -> None:
        """Raises: OSError when the library is not installed."""
        self._library = ctypes.CDLL(LIBRARY)

    def sums(
        self, factors: list[bytes], sources: Sequence[bytearray], targets: Sequence[bytearray]
    ) -> Callable[[], object]:
        """Return a call that fills each target with a row of factors times the sources."""
        rows, inputs, size = len(factors), len(sources), len(sources[0])
        tables = (ctypes.c_ubyte * (32 * inputs * rows))()
        self._library.ec_init_tables(inputs, rows, b"".join(factors), tables)
        pointers = [
            (ctypes.c_void_p * len(buffers))(
                *(ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers)
            )
            for buffers in (sources, targets)
        ]

        def fill(_held: object = (sources, targets)) -> None:  # ctypes keeps addresses only
            self._library.ec_encode_data(size, inputs, rows, tables, *pointers)

        return fill


def _factors(code: Code, present: list[int], wanted: list[int]) -> list[bytes]:
    """Return the rows that give the wanted shards: what they are of unit vectors."""
    units = [bytes(row == column for column in range(code.data)) for row in range(code.data)]
    rows = [bytearray(code.data) for _ in wanted]
    code.rebuild(present, units, wanted, rows)
    return [bytes(row) for row in rows]


def _rows(code: Code, what: str, content_bytes: int, isal: Isal | None) -> list[Row]:
    """Return encoding and decoding of one code, after all engines agreed on the bytes."""
    k, m = code.data, code.parity
    size = -(-content_bytes // k // BLOCK_BYTES) * BLOCK_BYTES
    rng = random.Random(5)
    data = [bytearray(rng.randbytes(size)) for _ in range(k)]
    parity, other = ([bytearray(size) for _ in range(m)] for _ in range(2))
    encoder, decoder = zfec.Encoder(k, k + m), zfec.Decoder(k, k + m)
    numbers = list(range(k, k + m))
    encode: dict[str, Callable[[], object]] = {
        "torus": lambda: code.encode(data, parity),
        "zfec": lambda: encoder.encode(data, numbers),
    }
    if isal is not None:
        encode["isal"] = isal.sums(code.matrix()[k:], data, other)
    for call in encode.values():
        call()
    if encoder.encode(data, numbers) != parity or (isal is not None and other != parity):
        raise AssertionError(f"{k}+{m}: the engines do not agree on the parity")

    lost = list(range(min(k, m)))
    present = [number for number in range(k + m) if number not in lost][:k]
    having = tuple([*data, *parity][number] for number in present)
    found, found_isal = ([bytearray(size) for _ in lost] for _ in range(2))
    decode: dict[str, Callable[[], object]] = {
        "torus": lambda: code.rebuild(present, having, lost, found),
        "zfec": lambda: decoder.decode([*having], present),  # it reorders the list it is given
    }
    if isal is not None:
        decode["isal"] = isal.sums(_factors(code, present, lost), having, found_isal)
    for call in decode.values():
        call()
    expected = [data[number] for number in lost]
    if found != expected or (isal is not None and found_isal != expected):
        raise AssertionError(f"{k}+{m}: the engines do not agree on the lost data")
    return [
        Row(f"{k}+{m} encode, {what}", k * size, encode),
        Row(f"{k}+{m} decode, {what}", k * size, decode),
    ]


def measure(rows: list[Row], rounds: int) -> None:
    """Time every row of every engine in each round; keep the best."""
    for turn in range(rounds):
        for row in rows:
            engines = list(row.calls)
            calls = max(1, TIMED_BYTES // row.data_bytes)
            for step in range(len(engines)):
                engine = engines[(turn + step) % len(engines)]
                call = row.calls[engine]
                began = time.thread_time_ns()
                for _ in range(calls):
                    call()
                took = max(1, time.thread_time_ns() - began) / 1e9 / calls
                row.best_s[engine] = min(took, row.best_s.get(engine, took))


def table(rows: list[Row]) -> tuple[str, bool]:
    """Return the figures as a table, and whether every goal that was measured is reached."""
    lines, good = [], True
    for row in rows:
        line = [row.name, *(f"{row.rate(engine):,.0f}" for engine in ("torus", "zfec"))]
        line.append(f"{row.rate('isal'):,.0f}" if "isal" in row.calls else "-")
        for engine, goal in GOALS.items():
            if engine not in row.calls:
                line.append("not measured")
                continue
            reached = row.ratio(engine) >= goal
            good = good and reached
            line.append(f"{row.ratio(engine):.2f}" + ("" if reached else " MISSED"))
        lines.append(line)
    goals = [f"torus / {engine} (goal {goal:g})" for engine, goal in GOALS.items()]
    return markdown_table(["MB/s of data", "torus", "zfec", "ISA-L", *goals], lines), good


def main() -> int:
    """Print the figures; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench.cases.erasure", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"({ROUNDS})")
    parser.add_argument("--kernel", help="of torus; by default the fastest of this machine")
    parser.add_argument("--check", action="store_true", help="fail when a goal is missed")
    options = parser.parse_args()
    try:
        isal = Isal()
    except OSError as error:
        print(f"without ISA-L ({error}); apt-get install libisal2", file=sys.stderr)
        isal = None
    rows = []
    for what, content_bytes in CONTENT_BYTES.items():
        for data, parity in SCHEMES:
            rows += _rows(Code(data, parity, options.kernel), what, content_bytes, isal)
    measure(rows, options.rounds)
    text, good = table(rows)
    print(f"kernel {options.kernel or kernel_name()}, best of {options.rounds} rounds\n\n{text}")
    return 0 if good or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())

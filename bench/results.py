"""What a run measured, as values, as JSON and as tables.

Decides the format of ``results/*.json`` and how numbers are summed up: medians over rounds,
with the smallest and largest beside them.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One row on one server in one round; ``error`` says why there are no numbers."""

    row: str
    server: str
    round_index: int
    operations_per_s: float = 0.0
    bytes_per_s: float = 0.0
    latency_us_p50: float = 0.0
    latency_us_p99: float = 0.0
    cpu_us_per_operation: float = 0.0
    other_cpu_s: float = 0.0  # neither server nor fio: the kernel's threads and strangers
    stolen_cpu_s: float = 0.0
    load_average: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """Something measured on torus alone, once a round or many times."""

    name: str
    unit: str
    values: tuple[float, ...]
    note: str = ""
    error: str = ""

    def median(self) -> float:
        """Return the median; the value must not be an error."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run."""

    date: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    samples: tuple[Sample, ...]
    values: tuple[Value, ...]
    remarks: tuple[str, ...] = ()

    def rows(self) -> list[str]:
        """Return the names of the rows in the order they ran."""
        return list(dict.fromkeys(sample.row for sample in self.samples))

    def servers(self) -> list[str]:
        """Return the names of the servers, torus first."""
        names = dict.fromkeys(sample.server for sample in self.samples)
        return sorted(names, key=lambda name: name != "torus")

    def cell(self, row: str, server: str) -> list[Sample]:
        """Return the samples of a cell that have numbers."""
        return [
            sample
            for sample in self.samples
            if sample.row == row and sample.server == server and not sample.error
        ]

    def rate(self, row: str, server: str) -> float | None:
        """Return the median operations per second, or None when nothing was measured."""
        rates = [sample.operations_per_s for sample in self.cell(row, server)]
        return statistics.median(rates) if rates else None

    def ratios(self, over: tuple[str, str], under: tuple[str, str]) -> list[float]:
        """Return the ratio of two (row, server) cells in every round that has both."""
        top = {s.round_index: s.operations_per_s for s in self.cell(*over)}
        base = {s.round_index: s.operations_per_s for s in self.cell(*under)}
        return [top[index] / base[index] for index in top if base.get(index)]

    def value(self, name: str) -> Value | None:
        """Return the value of that name."""
        return next((value for value in self.values if value.name == name), None)


def save(result: Result, path: Path) -> None:
    """Write the result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT, **asdict(result)}, indent=1) + "\n")


def load(path: Path) -> Result:
    """Read a result.

    Raises:
        ValueError: The file has another format.
    """
    content = json.loads(path.read_text())
    if content.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: not a result of format {FORMAT}")
    content["samples"] = tuple(Sample(**sample) for sample in content["samples"])
    content["values"] = tuple(
        Value(**{**value, "values": tuple(value["values"])}) for value in content["values"]
    )
    content["remarks"] = tuple(content["remarks"])
    return Result(**content)


def spread(numbers: Sequence[float], digits: int = 0) -> str:
    """Return 'median (smallest to largest)'."""
    middle, low, high = statistics.median(numbers), min(numbers), max(numbers)
    if len(numbers) == 1:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def row_table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines: one line for every row and server."""
    headings = ["row", "server", "op/s", "MiB/s", "p50 us", "p99 us", "CPU us/op", "torus / it"]
    lines = []
    for row in result.rows():
        torus_rate = result.rate(row, "torus")
        for server in result.servers():
            cell = result.cell(row, server)
            if not cell:
                errors = [s.error for s in result.samples if (s.row, s.server) == (row, server)]
                lines.append([row, server, f"failed: {errors[-1] if errors else 'not run'}"])
                lines[-1] += [""] * (len(headings) - len(lines[-1]))
                continue
            rate = result.rate(row, server)
            ratio = f"{torus_rate / rate:.2f}" if torus_rate and rate else ""
            lines.append(
                [
                    row,
                    server,
                    spread([s.operations_per_s for s in cell]),
                    f"{statistics.median(s.bytes_per_s for s in cell) / (1 << 20):,.1f}",
                    f"{statistics.median(s.latency_us_p50 for s in cell):,.0f}",
                    f"{statistics.median(s.latency_us_p99 for s in cell):,.0f}",
                    f"{statistics.median(s.cpu_us_per_operation for s in cell):,.1f}",
                    "" if server == "torus" else ratio,
                ]
            )
    return headings, lines


def value_table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines: one line for every value of torus alone."""
    lines = [
        [
            value.name,
            f"failed: {value.error}" if value.error else spread(value.values, 2),
            value.unit,
            value.note,
        ]
        for value in result.values
    ]
    return ["measure", "median (smallest to largest)", "unit", "how"], lines


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rendered = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    rendered += [
        "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines
    ]
    return "\n".join(rendered)


def describe_noise(result: Result) -> str:
    """Return one sentence on how quiet the machine was."""
    loads = [sample.load_average for sample in result.samples if not sample.error]
    start = result.environment["load_average"][0]
    other = [sample.other_cpu_s for sample in result.samples if not sample.error]
    stolen = sum(sample.stolen_cpu_s for sample in result.samples)
    sentence = f"Load average {start:.2f} at the start"
    if loads:
        sentence += (
            f", {statistics.median(loads):.2f} while measuring (fio and one server make up to 2);"
            f" CPU of others (kernel threads included) in a cell: {spread(other, 2)} s;"
            f" stolen by the hypervisor: {stolen:.1f} s in all"
        )
    if start > result.environment["processors"] / 2:
        sentence += ". **The machine was loaded when the run began**"
    return sentence + "."

"""What stands in deploy/: every metric exists, every command is one, the files can be read."""

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from torus.cli.main import main
from torus.daemon.metrics import METRICS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "torus.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
_NAME = re.compile(r"\btorus_[a-z_]+")
_LABEL = re.compile(r'(torus_[a-z_]+)\{([a-z_]+)="')


def expressions() -> list[str]:
    """Return everything that Prometheus is asked by the dashboard and the alerts."""
    board = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    blocks = re.findall(r"expr: (?:>-\n((?: {10}.*\n)+)|(.*)\n)", ALERTS.read_text())
    return found + [folded or line for folded, line in blocks]


def exported() -> dict[str, tuple[str, ...]]:
    """Return the names that are exported, with their labels."""
    names = {}
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        for suffix in suffixes:
            extra = ("le",) if suffix == "_bucket" else ()
            names[metric.name + suffix] = (*metric.labels, *extra)
    return names


def test_every_metric_that_is_asked_for_is_exported() -> None:
    names = exported()
    asked = {name for text in expressions() for name in _NAME.findall(text)}
    assert len(asked) > 20
    assert asked - names.keys() == set()
    for text in expressions():
        for name, label in _LABEL.findall(text):
            assert label in names[name], text


def test_alerts_have_what_an_operator_needs() -> None:
    text = ALERTS.read_text()
    alerts = re.findall(r"- alert: (\w+)", text)
    assert len(alerts) == len(set(alerts)) == text.count("severity:") == text.count("summary:")
    assert all(name.startswith("Torus") for name in alerts)


def test_panels_do_not_cover_each_other() -> None:
    board = json.loads(DASHBOARD.read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(places) == len(set(places))
    assert len({panel["id"] for panel in board["panels"]}) == len(places)


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("torus-node*.service")))
def test_unit_starts_a_command_that_is_one(unit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its words with --help instead of what the environment adds."""
    (line,) = re.findall(r"^ExecStart=/usr/bin/env torus (.*)$", unit.read_text(), re.MULTILINE)
    words = [word for word in line.split() if not word.startswith("$")]
    assert main([*words, "--help"]) == 0
    assert "usage: torus" in capsys.readouterr().out
    assert "Type=notify" in unit.read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
@pytest.mark.parametrize(
    "unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda unit: unit.name
)
def test_systemd_takes_the_unit(unit: Path) -> None:
    """It knows every key but those that came after its version."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
    )
    unknown = "Unknown key 'SurviveFinalKillSignal' in section [Unit], ignoring."
    said = [line for line in done.stderr.splitlines() if not line.endswith(unknown)]
    assert (done.returncode, [line for line in said if unit.name in line]) == (0, [])


def test_the_last_kill_of_a_shutdown_spares_the_disk() -> None:
    """systemd 255 takes this key in [Unit] and ignores it elsewhere."""
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.read(DEPLOY / "systemd" / "torus-attach@.service")
    assert parser.has_option("Unit", "SurviveFinalKillSignal")

"""Shorter times, so that what is silent is found to be soon."""

import pytest

from torus import limits


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let silence be short, and waiting for disks too."""
    monkeypatch.setattr(limits, "REPLICA_SILENCE_S", 0.05)
    monkeypatch.setattr(limits, "REPLICA_SYNC_S", 0.3)
    monkeypatch.setattr(limits, "REPLICA_SCAN_S", 0.1)
    monkeypatch.setattr(limits, "REPLICA_GRACE_S", 0.02)
    monkeypatch.setattr(limits, "REPLICA_READ_S", 0.3)
    monkeypatch.setattr(limits, "REPLICA_RETURN_FIRST_S", 0.05)
    monkeypatch.setattr(limits, "DETACH_WAIT_S", 0.2)

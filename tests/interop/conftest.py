"""What tests of real clusters share: an etcd for each module, and a cluster for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Cluster, cluster_in
from tests.etcd_members import EtcdCluster, running


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    """Give an etcd of one member."""
    with running(1) as members:
        yield members


@pytest.fixture
def cluster(
    etcd: EtcdCluster, socket_folder: Path, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """Give a cluster without nodes, none of which may have shown a traceback at the end."""
    with cluster_in(socket_folder, etcd, request.node.name) as made:
        yield made
        for machine in made.machines.values():
            for service in machine.services:
                assert "Traceback" not in service.text
                assert '"traceback"' not in service.text

"""What volumes that are detached by now had counted: sums go on when a volume goes."""

from dataclasses import dataclass

from torus.volume.volume import Volume


@dataclass(slots=True)
class Past:
    """Sums over the volumes that this process had attached before."""

    records: int = 0
    log_bytes: int = 0
    client_bytes: int = 0
    collected_bytes: int = 0
    checkpoints: int = 0
    seals: int = 0
    rolls: int = 0

    def add(self, volume: Volume) -> None:
        """Count a volume that is being detached."""
        core = volume.core
        self.records += core.journal.records
        self.log_bytes += core.journal.appended_bytes
        self.client_bytes += core.client_bytes
        self.collected_bytes += core.collected_bytes
        self.checkpoints += volume.checkpointer.count
        self.seals += volume.resealer.seals
        self.rolls += volume.resealer.rolls

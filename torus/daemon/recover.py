"""x"""

from pathlib import Path

from torus.daemon.reports import Progress, RecoverReport


def recover(
    data_dir: Path, meta_url: str, progress: Progress, *, force: bool = False
) -> RecoverReport:
    """x"""
    raise NotImplementedError

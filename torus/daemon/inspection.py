"""x"""

from pathlib import Path
from typing import Any


def inspect_segment(path: Path, *, detail: bool = False) -> dict[str, Any]:
    """x"""
    raise NotImplementedError

"""Compiled loops for benchmarks of kernels: built beside the case, timed by the thread's clock."""

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

REPEATS = 15


def load_loop(name: str, folder: Path) -> ModuleType:
    """Build NAME.pyx of this folder in another one, and import it."""
    source = shutil.copy(Path(__file__).with_name(f"{name}.pyx"), folder)
    command = [str(Path(sys.executable).with_name("cythonize")), "-i", "-3", source]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    (built,) = folder.glob(f"{name}*.so")
    spec = importlib.util.spec_from_file_location(name, built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def best_ns(call: Callable[[], object], operations: int) -> float:
    """Nanoseconds of one operation."""
    times = []
    for _ in range(REPEATS):
        began = time.thread_time_ns()
        call()
        times.append((time.thread_time_ns() - began) / operations)
    return min(times)

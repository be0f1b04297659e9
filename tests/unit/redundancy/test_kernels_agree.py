"""Kernels for processors that this machine is not: on a model, or on an emulated processor."""

import shutil
import subprocess
from pathlib import Path

import pytest

from torus._fast.erasure import kernels

ROOT = Path(__file__).resolve().parents[3]
SOURCE = Path(__file__).with_name("kernels_agree.c")
STRICT = ("-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'torus/_fast/kernels'}")


def _agreed(folder: Path, compiler: str, *options: str, runner: str | None = None) -> list[str]:
    """Build and run the comparison; return the kernels that it names."""
    program = folder / "agree"
    command = [compiler, *STRICT, *options, str(SOURCE), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stderr
    run = [runner, str(program)] if runner else [str(program)]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_kernels_of_this_machine_agree_and_write_nothing_else(tmp_path: Path) -> None:
    """Odd sizes and places, sums on top of sums, parts of a plan; guards around the outputs."""
    assert _agreed(tmp_path, "gcc") == list(kernels())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.skipif("avx2" not in kernels(), reason="the model needs AVX2")
def test_the_kernels_for_gfni_agree_on_a_model_of_it(tmp_path: Path) -> None:
    """Matrices and order of bits are right, whether or not this processor has GFNI."""
    expected = ["scalar", "ssse3", "avx2", "gfni-avx2", "gfni-avx512"]

    assert _agreed(tmp_path, "gcc", "-DMODEL") == expected


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="needs a compiler and an emulator for aarch64",
)
def test_the_kernel_for_neon_agrees_on_an_emulated_processor(tmp_path: Path) -> None:
    compiler, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64"

    assert _agreed(tmp_path, compiler, "-static", runner=emulator) == ["scalar", "neon"]

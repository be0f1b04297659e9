"""Build the kernels in torus/_fast.  All other metadata lives in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = (
    "crc", "record", "mappages", "usage", "leaftree", "checkpoint", "familytree", "blockmap",
    "blockio", "frame", "reply", "stats", "datapath", "syncer", "socketio", "mapdiff", "collect",
    "ring", "ringbuild", "peerframe", "erasure", "laterread",
)  # fmt: skip
CHECKSUM = ("crc32c.h",)
HEADERS = {
    "erasure": (
        "erasure_field.h", "erasure_neon.h", "erasure_rows.h", "erasure_simd.h", "erasure_x86.h",
    ),
}  # fmt: skip
TRACE = os.environ.get("TORUS_TRACE") == "1"  # line tracing and bounds checks: never shipped
MACROS = [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")] if TRACE else []
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": TRACE,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "linetrace": TRACE,
}

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"torus._fast.{name}",
                [f"torus/_fast/{name}.pyx"],
                define_macros=MACROS,
                extra_compile_args=["-O3", "-Wall", "-Wextra", "-Wno-unused-parameter"],
                include_dirs=["torus/_fast/kernels"],
                depends=[f"torus/_fast/kernels/{header}" for header in HEADERS.get(name, CHECKSUM)],
            )
            for name in KERNELS
            if os.path.exists(f"torus/_fast/{name}.pyx")
        ],
        compiler_directives=DIRECTIVES,
        force=TRACE,
    )
)

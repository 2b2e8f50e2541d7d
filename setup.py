"""Builds the optional C++ kernels; everything else about the package is in pyproject.toml.

With no working compiler the install still succeeds and the numpy reference serves (slower, same answers).
No -march=native: each function names its instruction set and the best is chosen at run time, so a wheel runs anywhere.
"""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

_FOLDER = "index/kernels"
_PRIMITIVES = ("primitives_portable", "primitives_avx2", "primitives_avx512")
_BINDINGS = ("binding", "binding_encode", "binding_reaching", "binding_search")
_SOURCES = (*_BINDINGS, "bands", "encode", *_PRIMITIVES, "reaching", "recording", "router", "search", "stages")
_HEADERS = (
    "binding_checks",
    "binding_holders",
    "binding_recording",
    "binding_segment",
    "candidates",
    "kernels",
    "narrowed",
    "pages",
    "primitives",
    "query",
    "reaching",
    "recording",
    "search",
    "threads",
)

setup(
    ext_modules=[
        Pybind11Extension(
            "nestvec.index.kernels._native",
            sources=[f"{_FOLDER}/{name}.cpp" for name in _SOURCES],
            depends=[f"{_FOLDER}/{name}.hpp" for name in _HEADERS],
            cxx_std=17,
            # -ffp-contract=off: a fused multiply-add would round differently from the reference.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"],
            optional=True,
        )
    ],
    exclude_package_data={"nestvec.index.kernels": ["*.cpp", "*.hpp"]},  # in the sdist, not in the wheel
)

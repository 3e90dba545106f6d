"""The Cython extensions; everything else about the package is in setup.cfg."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOMS = ("shared", "storenode")
NATIVE = ("shared/native", "storenode/engine/native")


def extensions() -> list[Extension]:
    sources = sorted(str(path) for room in ROOMS for path in Path(room).rglob("*.pyx"))
    return [
        Extension(
            source.removesuffix(".pyx").replace("/", "."),
            [source],
            extra_compile_args=["-O3", "-fno-plt"],
            include_dirs=list(NATIVE),
            depends=[str(header) for folder in NATIVE for header in sorted(Path(folder).glob("*.h"))],
        )
        for source in sources
    ]


setup(
    ext_modules=cythonize(
        extensions(),
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
    )
)

"""Compiles the image's bytecode: `bytecode.py OUT BASE [EXTRA…]`.

OUT: the tree that is copied over the base image, with the packages in it. BASE: a directory with a copy of the base image's
/usr/lib/python3.11 at that path. All packages are compiled. The base image has the standard library as source only, so those of
its modules that the commands import are compiled too: otherwise every start would compile them, since nothing can be written.

The files contain no times (PEP 552) and are not compared with their sources, which cannot change in an image.
"""

from __future__ import annotations

import compileall
import importlib
import pkgutil
import py_compile
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

MODE = py_compile.PycInvalidationMode.UNCHECKED_HASH
STANDARD_LIBRARY = "usr/lib/python3.11"
OF_EXTRAS = {"cuda": ["cupy", "cuda.pathfinder"]}
"""Imported by our modules only where an extra is used."""


def main(out: Path, base: Path, extras: Sequence[str]) -> None:
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"Python of the builder: {sys.version.split()[0]}; expected 3.11, as in the base image")
    packages = out / "usr/local/lib/python3.11/dist-packages"
    sys.dont_write_bytecode = True
    for stale in packages.rglob("*.pyc"):
        stale.unlink()
    if not compileall.compile_dir(packages, quiet=1, stripdir=str(out), invalidation_mode=MODE, maxlevels=99):
        sys.exit(f"{packages}: a module does not compile")
    others = [name for extra in extras for name in OF_EXTRAS[extra]]
    for name in sorted(imported_by_the_commands(packages, others)):
        source = base / STANDARD_LIBRARY / name
        if not source.exists():
            continue  # an extension module, or a module of another patch level of Python
        compiled = out / STANDARD_LIBRARY / Path(name).parent / "__pycache__" / f"{source.stem}.cpython-311.pyc"
        compiled.parent.mkdir(parents=True, exist_ok=True)
        py_compile.compile(str(source), str(compiled), f"/{STANDARD_LIBRARY}/{name}", doraise=True, invalidation_mode=MODE)


def imported_by_the_commands(packages: Path, others: Sequence[str]) -> set[str]:
    """Imports all of our modules, which checks what was kept; gives paths of the standard library's modules loaded by then.

    others: further modules.
    """
    sys.path.insert(0, str(packages))
    for name in others:
        importlib.import_module(name)
    for name in ("sidecar", "onnx_builder"):
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    library = Path(sysconfig.get_path("stdlib"))
    files = [Path(path) for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))]
    return {str(path.relative_to(library)) for path in files if path.is_relative_to(library) and path.suffix == ".py"}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

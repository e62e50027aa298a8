#!/usr/bin/env python3
"""Sizes of an image, or of a directory of Python packages: `measure.py IMAGE [EXTRA]` or `measure.py DIRECTORY`.

IMAGE: a directory in OCI layout, as `buildah push NAME oci:DIRECTORY` writes it. The last layer is the application, the layers
below it are the base. DIRECTORY is measured as if it were in a layer.

Sizes are in MB of 1,000,000 bytes. "Unpacked" is the size of the layers' tar files, "compressed" that of the layers as they
were pushed; packages are compressed one by one with zlib at level 6. Exit code 1 if an image is larger than LIMITS, by its
extra.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMITS = {"": {"application": (120, 45), "image": (175, 65)}, "cuda": {"application": (1000, 600), "image": (1055, 625)}}
PACKAGES = "usr/local/lib/python3.11/dist-packages/"
PARTS = {
    "sidecar": "vmafx-sidecar",
    "onnx_builder": "vmafx-sidecar",
    "numpy.libs": "numpy: OpenBLAS",
    "google": "protobuf",
    "cupy_backends": "cupy",
    "cupyx": "cupy",
    "nvidia": "cuBLAS and NVRTC",
    "cuda": "cuda-pathfinder",
    "__pycache__": "typing_extensions",  # the only package that is one file
}

Member = tuple[tarfile.TarInfo, bytes]


class Size:
    """Bytes of a stream of tar members, and what gzip makes of them."""

    def __init__(self) -> None:
        self.unpacked = self.compressed = 0
        self._gzip = zlib.compressobj(6, wbits=31)

    def add(self, info: tarfile.TarInfo, content: bytes) -> None:
        for part in (info.tobuf(), content, bytes(-len(content) % tarfile.BLOCKSIZE)):
            self.unpacked += len(part)
            self.compressed += len(self._gzip.compress(part))

    def finish(self) -> tuple[float, float]:
        self.compressed += len(self._gzip.flush())
        return self.unpacked / 1e6, self.compressed / 1e6


def layer_members(blob: Path) -> Iterator[Member]:
    with tarfile.open(blob, mode="r|gz") as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            yield info, file.read() if file else b""


def directory_members(directory: Path) -> Iterator[Member]:
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as tar:
        for path in sorted(directory.rglob("*")):
            info = tar.gettarinfo(path, str(path.relative_to(directory)))
            yield info, path.read_bytes() if info.isreg() else b""


def part_of(name: str) -> str:
    """The package that a path belongs to."""
    name = name.removeprefix("./").removeprefix("/")
    if name.startswith("usr/lib/python3.11"):
        return "standard library's bytecode"
    if name.startswith("usr") and not name.startswith(PACKAGES):
        return "vmafx-sidecar"
    top = name.removeprefix(PACKAGES).split("/")[0].split("-")[0]
    return PARTS.get(top, top.split(".")[0])


def measure(members: Iterator[Member]) -> dict[str, tuple[float, float]]:
    """Unpacked and compressed MB by package."""
    sizes: dict[str, Size] = defaultdict(Size)
    for info, content in members:
        sizes[part_of(info.name)].add(info, content)
    return {name: size.finish() for name, size in sizes.items()}


def layers(image: Path) -> list[Path]:
    def blob(descriptor: dict[str, Any]) -> Path:
        return image / "blobs" / descriptor["digest"].replace(":", "/")

    (manifest,) = json.loads((image / "index.json").read_text())["manifests"]
    return [blob(each) for each in json.loads(blob(manifest).read_text())["layers"]]


def total(sizes: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(size[0] for size in sizes), sum(size[1] for size in sizes)


def row(name: str, size: tuple[float, float], limits: str = "") -> None:
    print(f"{name:30} {size[0]:9.1f} {size[1]:10.1f} {limits}")


def main(path: Path, extra: str = "") -> int:
    blobs = layers(path) if (path / "index.json").exists() else []
    sizes = [measure(layer_members(blob)) for blob in blobs] or [measure(directory_members(path))]
    print(f"{'MB':30} {'unpacked':>9} {'compressed':>10}")
    for name, size in sorted(sizes[-1].items(), key=lambda item: item[1], reverse=True):
        row(name, size)
    if not blobs:
        row("together", total(list(sizes[-1].values())))
        return 0
    whole = [(total(list(each.values()))[0], blob.stat().st_size / 1e6) for each, blob in zip(sizes, blobs, strict=True)]
    measured = {"application": whole[-1], "base": total(whole[:-1]), "image": total(whole)}
    limits = LIMITS[extra]
    for name, size in measured.items():
        row(name, size, f"  (at most {limits[name][0]} and {limits[name][1]})" if name in limits else "")
    return int(any(size > limit for name in limits for size, limit in zip(measured[name], limits[name], strict=True)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))

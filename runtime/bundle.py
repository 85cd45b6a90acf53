"""A bundle on disk: opened, checked, and asked for its files."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.errors import BundleError
from runtime.graph_check import check_tables
from runtime.manifest import Manifest

__all__ = ["MANIFEST_FILE", "Bundle", "load_bundle", "sha256_of"]

MANIFEST_FILE = "bundle.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its directory and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a listed file, e.g. `tokenizer.json`.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(
                f"bundle {self.path} has no {name}: rebuild the bundle with `python -m export.build`"
            )
        return self.path / name

    def graph(self, name: str) -> Path:
        """The path of a graph by its contract name, e.g. `vision_encoder`."""
        return self.path / self.manifest.graphs[name].file

    def constant(self, name: str) -> npt.NDArray[np.float32] | None:
        """A constant tensor by name, or None where the model has none of that name.

        Raises:
            BundleError: its file has another size than its shape.
        """
        info = self.manifest.constants.get(name)
        if info is None:
            return None
        size = self.manifest.files[info.file].bytes
        values = np.fromfile(self.file(info.file), "<f4")
        if size != 4 * math.prod(info.shape):
            raise BundleError(
                f"{self.path / info.file} has {size} bytes, but bundle.json says float32 {list(info.shape)}"
                ": copy the bundle again, it is damaged"
            )
        return values.astype(np.float32).reshape(info.shape)


def load_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Open a bundle and check that it is whole.

    Existence and size of every listed file are always checked; `verify` adds the SHA-256 of each, which reads
    the whole bundle once.

    Raises:
        BundleError: nothing there, not a bundle, half-written, damaged, or from a newer format.
    """
    root = Path(path)
    if not _exists(root):
        raise BundleError(
            f"there is no bundle at {root}: build one with `python -m export.build --output {root}`"
        )
    if not root.is_dir():
        raise BundleError(
            f"{root} is a file, but a bundle is a directory: give the directory that holds bundle.json"
        )
    try:
        text = (root / MANIFEST_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(
            f"{root} has no bundle.json, so it is not a bundle or was only half written: "
            "build it again with `python -m export.build`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{root / MANIFEST_FILE} cannot be read ({error}): copy the bundle again"
        ) from error
    manifest = Manifest.from_json(text)
    check_tables(manifest)
    for name, info in manifest.files.items():
        file = root / name
        if not file.is_file():
            raise BundleError(f"bundle {root} lacks {name}, so it was only copied in part: copy it again")
        size = file.stat().st_size
        if size != info.bytes:
            raise BundleError(
                f"{file} has {size} bytes, but bundle.json says {info.bytes}: "
                "copy the bundle again, it is damaged"
            )
        if verify and sha256_of(file) != info.sha256:
            raise BundleError(
                f"{file} does not have the SHA-256 of bundle.json: copy the bundle again, it is damaged"
            )
    return Bundle(root, manifest)


def _exists(root: Path) -> bool:
    try:
        root.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # a name too long, no permission, a null byte
        raise BundleError(f"the bundle {root} cannot be opened ({error}): check the path") from error
    return True


def sha256_of(file: Path) -> str:
    """Lower-case hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

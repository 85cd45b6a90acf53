"""`python -m tests.fetch_ort_aarch64 FOLDER`: ONNX Runtime for aarch64, for tests that run under qemu.

The package of ONNX Runtime for Node.js has it for every platform; `npm pack` gets it from the registry that
npm is set up for. Prints the library's path; a second call only does that.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.24.3"  # 1.30 stops in its own start-up code under qemu 7.2, on a machine that is no aarch64
NAME = "libonnxruntime.so.1"
_WITHIN = f"linux/arm64/{NAME}"


def fetch(folder: Path) -> Path:
    """The library in `folder`, fetched (about 90 MB) if it is not there yet.

    Raises:
        RuntimeError: npm is missing or fails, or the package has no such library.
    """
    library = folder / VERSION / NAME
    if library.is_file():
        return library
    if shutil.which("npm") is None:
        raise RuntimeError("npm is missing: install it (Debian: npm)")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = ["npm", "pack", "--silent", "--pack-destination", scratch, f"onnxruntime-node@{VERSION}"]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        packages = list(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or not packages:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:] or 'no file came'}")
        unpacked = Path(scratch) / NAME
        with tarfile.open(packages[0]) as package, unpacked.open("wb") as out:
            member = next((entry for entry in package if entry.name.endswith(_WITHIN)), None)
            content = member and package.extractfile(member)
            if not content:
                raise RuntimeError(f"{packages[0].name} has no {_WITHIN}: take another version")
            shutil.copyfileobj(content, out)
        unpacked.replace(library)
    return library


if __name__ == "__main__":
    try:
        print(fetch(Path(sys.argv[1])))
    except RuntimeError as error:
        sys.exit(f"error: {error}")

"""src/image of runtime/cpp as a Python object: `Probe` runs the program probe_image for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError
from tests.cpp_build import cpp_tool
from tests.cpp_probe import LineProbe

__all__ = ["Pixels", "Probe", "picture"]

Pixels = npt.NDArray[np.uint8]


class Probe(LineProbe):
    """The program behind a pipe, and a folder for pictures: one process for all tests of a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(cpp_tool("probe_image"))

    def ask_for(self, *parts: object) -> dict[str, Any]:
        """The answer to a line of parts."""
        return self.answer("\t".join(map(str, parts)))

    def pixels(self, *parts: object) -> Pixels:
        out = self.folder / "out.rgb"
        answer = self.ask_for(*parts, out)
        if "error" in answer:
            raise ImageError(answer["error"])
        return np.fromfile(out, np.uint8).reshape(answer["height"], answer["width"], 3)

    def decode(self, data: bytes) -> Pixels:
        path = self.folder / "image"
        path.write_bytes(data)
        return self.pixels("decode", path)

    def resize(self, image: Pixels, height: int, width: int, resample: int) -> Pixels:
        path = self.folder / "in.rgb"
        image.tofile(path)
        return self.pixels("resize", path, *image.shape[:2], height, width, resample)


def picture(seed: int, height: int, width: int, channels: int = 3) -> Pixels:
    """Smooth colours with noise: like a photograph for a decoder, and all levels occur."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / rng.uniform(2, 40) + columns / rng.uniform(2, 40) + c) for c in range(channels)]
    noise = rng.normal(0, 12, (height, width, channels))
    return np.clip(127 + 150 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)

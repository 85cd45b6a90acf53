"""`python -m tests.fuzz_seeds FOLDER`: files to start fuzzing from, a folder per target.

Taken from the frozen bundles of the tests and made with Pillow; small, because libFuzzer mutates them very
often.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["main"]

BUNDLES = Path(__file__).parent / "data"
_TEXT = b"\0Hello 123 \xc3\xa9\xf0\x9f\x98\x80<s> \n\xff"
_PARTS: list[dict[str, Any]] = [
    {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "\u2581"}],
        }
    },
    {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}},
    {
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "first",
            "split": True,
        }
    },
    {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "\\s+(?!\\S)|\\p{N}{1,3}|[^\\s\\p{L}]+"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    {"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}},
]


def main(folder: Path) -> None:
    """Write the seeds."""
    for number, bundle in enumerate(sorted(BUNDLES.glob("bundle_*"))):
        _write(folder / "manifest" / f"{number}.json", (bundle / "bundle.json").read_bytes())
        tokenizer = (bundle / "tokenizer.json").read_bytes()
        _write(folder / "tokenizer" / f"{number}", tokenizer + _TEXT)
        for part, change in enumerate(_PARTS):
            changed = json.dumps({**json.loads(tokenizer), **change})
            _write(folder / "tokenizer" / f"{number}_{part}", changed.encode() + _TEXT)
        _write(folder / "npz" / f"{number}.npz", (bundle / "golden" / "golden.npz").read_bytes())
    for kind in "<f4", "<f8", "<f2", "<i8", "<i4", "|u1", "|b1":
        arrays = {"a": np.zeros((2, 3), kind), "b": np.ones(4, kind)}
        for name, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
            out = io.BytesIO()
            save(out, **arrays)  # type: ignore[arg-type]
            _write(folder / "npz" / f"{name}_{kind[1:]}.npz", out.getvalue())
    _write_pictures(folder / "image")


def _write_pictures(folder: Path) -> None:
    for mode in ("1", "L", "P", "LA", "I;16", "RGB", "RGBA", "CMYK"):
        noise = Image.effect_noise((13, 9), 90)
        image = Image.new(mode, noise.size) if mode == "I;16" else noise.convert(mode)
        _save(folder, mode, image, PNG={"optimize": True}, JPEG={}, GIF={"interlace": 1}, BMP={})
        _save(folder, f"{mode}_2", image, PNG={"transparency": 3}, JPEG={"progressive": True})
        rotated = Image.Exif()
        rotated[0x0112] = 6
        _save(folder, f"{mode}_3", image, PNG={"exif": rotated}, JPEG={"exif": rotated})
        _save(folder, f"{mode}_4", image, GIF={"save_all": True, "append_images": [noise], "transparency": 0})


def _save(folder: Path, name: str, image: Image.Image, **kinds: dict[str, Any]) -> None:
    for kind, options in kinds.items():
        out = io.BytesIO()
        try:
            image.save(out, kind, **options)
        except (OSError, ValueError, TypeError):  # a mode or an option that the format does not have
            continue
        _write(folder / f"{name.replace(';', '_')}.{kind.lower()}", out.getvalue())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    main(target)

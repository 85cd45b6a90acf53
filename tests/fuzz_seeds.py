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
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK"):
        image = Image.effect_noise((13, 9), 90).convert(mode)
        for kind in ("PNG", "JPEG", "GIF", "BMP"):
            out = io.BytesIO()
            try:
                image.save(out, kind)
            except (OSError, ValueError):  # a mode that the format does not have
                continue
            _write(folder / "image" / f"{mode}.{kind.lower()}", out.getvalue())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    main(target)

"""Answers one behind the other in a process of their own, and what each took. Called by `bench.native`.

    python -m bench.answers BUNDLE --backend native --image demo/images/three_digits.png --threads 2

One runtime per process: idle threads of ONNX Runtime look for work for a while, on the cores of whoever is
next. Prints one JSON object: seconds to the first token, and per token behind it, a number per answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.exactness import DEMO_PROMPT
from runtime import NO_REUSE, Generator, Request, load_bundle

__all__ = ["main"]

_WARMUP = 5
_TOKENS = 16


def main(arguments: list[str] | None = None) -> int:
    """Answer, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m bench.answers")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--answers", type=int, default=20)
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle, verify=False)
    generator = Generator(bundle, options.backend, threads=options.threads, reuse=NO_REUSE)
    # The path of the picture: decoding the file is part of both.
    request = Request(DEMO_PROMPT, (options.image,), ratio=0.3, max_new_tokens=_TOKENS, ignore_eos=True)
    found: dict[str, list[float]] = {"ttft": [], "decode": []}
    for number in range(_WARMUP + options.answers):
        timings = generator.generate(request).timings
        if number >= _WARMUP:
            found["ttft"].append(timings.ttft)
            found["decode"].append(timings.decode / (_TOKENS - 1))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One request, answered in a process of its own, whose memory is watched. Called by `bench.large_model`.

    python -m bench.one_answer BUNDLE --ratio 0.3 --new-tokens 32 --threads 2

Asks what the golden tensors of the bundle were made with, nothing reused, and goes on past the end of the
answer. Prints one JSON object: tokens, bytes, seconds, the graphs that were opened, and how much of the
memory that is resident now is anonymous and how much pages of files (None where the system does not tell).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.child import memory_counters
from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.golden import load_record
from runtime.request import Request
from runtime.reuse import NO_REUSE

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Answer it and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m bench.one_answer")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--ratio", type=float, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle, verify=False)
    record = load_record(bundle)
    request = Request(
        record.prompt,
        tuple(bundle.file(image) for image in record.images),
        ratio=options.ratio,
        max_new_tokens=options.new_tokens,
        ignore_eos=True,
    )
    generator = Generator(bundle, threads=options.threads, reuse=NO_REUSE)
    result = generator.generate(request)
    print(json.dumps({**result.to_dict(), "graphs": generator.loaded_graphs, **_resident()}))
    return 0


def _resident() -> dict[str, Any]:
    counters = memory_counters()
    return {f"{name}_bytes": counters.get(name) for name in ("anonymous", "file")}


if __name__ == "__main__":
    sys.exit(main())

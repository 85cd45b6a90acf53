"""The C++ runtime beside the Python one: the same tokens? How large, how fast to start, how much memory?

    make cpp cpp-python
    python -m bench.native                                   the demo, 200 pictures
    python -m bench.native --bundle bundles/mine --images 0  another bundle, times and memory alone

Tokens: every picture at three ratios, greedy and drawn with a seed, through both runtimes in one process.
Cold start: a process from its start to its end with one token asked for, files not verified, the two by
turns. Steady state: 20 answers in a process, the processes by turns. Both load the same ONNX Runtime, its
telemetry off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bench.environment import ROOT, describe_environment
from bench.errors import BenchError
from bench.exactness import DEMO_PROMPT
from bench.images import mixed_images
from bench.memory import ChildUsage, run_measured
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table, write_markdown
from bench.workspace import DEMO
from runtime import NO_REUSE, Bundle, Generator, Request, load_bundle
from runtime.lazy import require

__all__ = ["RATIOS", "agreement", "dependencies", "main", "measure"]

RATIOS = (1.0, 0.3, 0.1)
_SAMPLING: tuple[dict[str, Any], ...] = ({}, {"temperature": 1.0, "top_p": 0.95, "seed": 7})
_IMAGE = ROOT / "demo" / "images" / "three_digits.png"
_BACKENDS = {"python": "onnxruntime", "c++": "native"}
_BUILD = ROOT / "build" / "cpp"
_TOKENS = 16
_MIB = 1 << 20


def measure(bundle_dir: Path | None, images: int, settings: Settings) -> Result:
    """Everything; `bundle_dir` None is the demo.

    Raises:
        BenchError: the C++ runtime has not been built, or `images` is below 0.
    """
    if images < 0:
        raise BenchError(f"images is {images}: compare 0 or more pictures")
    files = _files()  # before a bundle is built for nothing
    path = settings.workspace.bundle(DEMO) if bundle_dir is None else bundle_dir
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before it is loaded; `fopru` would set it itself
    os.environ.setdefault("FOPRU_ORT_LIB", str(_onnxruntime_library()))
    bundle = load_bundle(path)
    figures: dict[str, Any] = {"files": files}
    samples: dict[str, Any] = {}
    tables = [_file_table(files)]
    if images:
        figures["tokens"] = agreement(bundle, images, settings.threads)
        tables.append(_token_table(figures["tokens"]))
    figures["cold"], samples["cold"] = _cold(path, settings)
    figures["steady"], samples["steady"] = _steady(path, settings)
    tables.append(_time_table(figures["cold"], figures["steady"]))
    name = "native-demo" if bundle_dir is None else f"native-{path.name}"
    notes = (
        "Cold start: a whole process for one token, `--no-verify`. Steady state: 20 answers in a process, "
        "the processes of both by turns, nothing kept between requests, ratio 0.3. No telemetry of ONNX "
        "Runtime in either.",
        "Peak RSS is that of the process, the mapped pages of libraries and weights included.",
    )
    return Result(name, describe_environment(settings.threads), figures, samples, tuple(tables), notes)


def agreement(bundle: Bundle, images: int, threads: int) -> dict[str, dict[str, int]]:
    """Answers that are the same, token for token and index for index, by ratio and way to choose."""
    python, native = (
        Generator(bundle, name, threads=threads, reuse=NO_REUSE) for name in ("onnxruntime", "native")
    )
    pictures = [Image.fromarray(each) for kind in mixed_images(images, 448, 0).values() for each in kind]
    found: dict[str, dict[str, int]] = {}
    for ratio in RATIOS:
        for options in _SAMPLING:
            status(f"ratio {ratio:g}, {'drawn' if options else 'greedy'}")
            same = {"answers": 0, "kept": 0}
            for picture in pictures:
                request = Request(DEMO_PROMPT, (picture,), ratio=ratio, max_new_tokens=_TOKENS, **options)
                one, other = python.generate(request), native.generate(request)
                same["answers"] += one.token_ids == other.token_ids and one.text == other.text
                same["kept"] += one.kept_indices == other.kept_indices
            found[f"{ratio:g} {'drawn' if options else 'greedy'}"] = {**same, "pictures": len(pictures)}
    return found


def dependencies(library: Path) -> tuple[str, ...]:
    """Shared libraries that a file needs, by the names that `ldd` prints, its loader left out."""
    done = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False)
    names = re.findall(r"^\s+(\S+)", done.stdout, re.MULTILINE)
    return tuple(sorted({Path(name).name for name in names if not name.startswith(("linux-vdso", "/"))}))


def _files() -> dict[str, dict[str, Any]]:
    found = {}
    for name in ("libfopru_rt.so", "cli/fopru"):
        path = _BUILD / name
        if not path.is_file():
            raise BenchError(f"there is no {path.relative_to(ROOT)}: build the C++ runtime with `make cpp`")
        found[path.name] = {"bytes": path.stat().st_size, "needs": list(dependencies(path))}
    return found


def _onnxruntime_library() -> Path:
    package = Path(require("onnxruntime", "onnxruntime").__file__).parent
    return next((package / "capi").glob("libonnxruntime.so*"))


def _cold(bundle: Path, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    options = [str(bundle), "--image", str(_IMAGE), "--prompt", DEMO_PROMPT, "--max-new-tokens", "1"]
    options += ["--no-verify", "--json", "--threads", str(settings.threads)]
    commands = {
        "python": [sys.executable, "-m", "runtime", *options],
        "c++": [str(_BUILD / "cli" / "fopru"), "run", *options],
    }
    used: dict[str, list[ChildUsage]] = {name: [] for name in commands}
    for number in range(settings.warmup + settings.rounds):
        for name, command in commands.items():
            usage = run_measured(command)
            if usage.returncode != 0:
                raise BenchError(f"`{' '.join(command)}` ended with status {usage.returncode}: see above")
            if number >= settings.warmup:
                used[name].append(usage)
    samples: dict[str, dict[str, list[float]]] = {
        name: {
            "seconds": [each.seconds for each in own],
            "peak_rss_bytes": [each.peak_rss_bytes for each in own],
        }
        for name, own in used.items()
    }
    figures = {
        name: {key: statistics.median(values) for key, values in own.items()} for name, own in samples.items()
    }
    return figures, samples


def _steady(bundle: Path, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    samples: dict[str, dict[str, list[float]]] = {name: {"ttft": [], "decode": []} for name in _BACKENDS}
    options = [str(bundle), "--image", str(_IMAGE), "--threads", str(settings.threads)]
    for number in range(settings.warmup + settings.rounds):
        for name, backend in _BACKENDS.items():
            usage = run_measured([sys.executable, "-m", "bench.answers", *options, "--backend", backend])
            if usage.returncode != 0:
                raise BenchError(f"bench.answers ended with status {usage.returncode}: see above")
            if number >= settings.warmup:
                for key, values in json.loads(usage.stdout).items():
                    samples[name][key] += values
    figures = {
        name: {key: statistics.median(values) for key, values in own.items()} for name, own in samples.items()
    }
    return figures, samples


def _file_table(files: dict[str, dict[str, Any]]) -> Table:
    rows = tuple(
        (name, f"{each['bytes'] / _MIB:.1f}", " ".join(each["needs"])) for name, each in files.items()
    )
    return Table("Files", ("file", "MiB", "shared libraries"), rows)


def _token_table(tokens: dict[str, dict[str, int]]) -> Table:
    rows = tuple(
        (name, str(each["pictures"]), str(each["answers"]), str(each["kept"]))
        for name, each in tokens.items()
    )
    return Table("The same as in Python", ("ratio", "pictures", "answers", "kept tokens"), rows)


def _time_table(cold: dict[str, Any], steady: dict[str, Any]) -> Table:
    lines: Sequence[tuple[str, dict[str, Any], str, float, str]] = (
        ("cold start, ms", cold, "seconds", 1e3, ".0f"),
        ("peak RSS, MiB", cold, "peak_rss_bytes", 1 / _MIB, ".1f"),
        ("first token, ms", steady, "ttft", 1e3, ".2f"),
        ("next token, ms", steady, "decode", 1e3, ".3f"),
    )
    rows = tuple(
        (
            title,
            *(f"{own[name][key] * scale:{form}}" for name in ("python", "c++")),
            f"{own['c++'][key] / own['python'][key]:.2f}",
        )
        for title, own, key, scale, form in lines
    )
    return Table("Times and memory", ("medians", "Python", "C++", "C++ ÷ Python"), rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.native", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--bundle", type=Path, help="a bundle of yours (default: the demo)")
    parser.add_argument("--images", type=int, default=200, help="pictures to compare (default 200; 0: none)")
    add_common_options(parser, rounds=10)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        result = measure(options.bundle, options.images, settings)
        report(result, settings)
        write_markdown(result, settings.results)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())

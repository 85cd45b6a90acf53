"""`python -m runtime.engine BUNDLE`: TensorRT engines from a bundle, on the device that they will run on.

Prints which shapes the engines take and what they need of the memory, then builds them into BUNDLE/engines.
`--plan-only` needs no TensorRT and no GPU, and prints the `trtexec` commands as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, load_bundle
from runtime.errors import EngineError
from runtime.output import exit_code_of
from runtime.tensorrt.builder import EngineBuilder
from runtime.tensorrt.engines import (
    TIMING_CACHE,
    EngineSet,
    build_command,
    build_engines,
    engine_folder,
    find_engines,
    record_engines,
)
from runtime.tensorrt.identity import (
    TARGETS,
    EngineIdentity,
    EngineTarget,
    Probe,
    find_identity,
    find_trtexec,
    target_named,
)
from runtime.tensorrt.memory import (
    BOARDS,
    FreeMemory,
    MemoryNeed,
    ModelSizes,
    Preflight,
    free_memory,
    memory_of,
    preflight,
    sizes_from_config,
)
from runtime.tensorrt.plan import (
    LEAST_RATIO,
    EnginePlan,
    GraphPlan,
    InputProfile,
    Limits,
    plan_engines,
)
from runtime.tensorrt.trtexec import TrtexecPaths, shell_text, trtexec_command

__all__ = ["main"]

_EPILOG = """
Engines are built for --max-images, --max-prompt and --max-new-tokens at most; longer requests are refused.
The ratio is the fraction of visual tokens KEPT: --max-ratio 0.3 builds engines that never keep more, and
their KV cache and scratch memory are smaller. Exit codes: 0 done, 1 it would not fit (--force goes on, a
plan alone ends with 0), 2 an error in one sentence, 130 Ctrl-C, 141 the reader of stdout left.
"""
_LEAST_WORKSPACE = 256 << 20


@dataclass(frozen=True)
class _Job:
    """Everything that is known before a build."""

    bundle: Bundle
    identity: EngineIdentity
    plan: EnginePlan
    checked: Preflight
    guessed: tuple[str, ...]
    saving: str
    commands: tuple[str, ...]


def main(
    argv: Sequence[str] | None = None, prog: str = "python -m runtime.engine", probe: Probe | None = None
) -> int:
    """The command line; `probe` is how the device is asked."""
    args = _parser(prog).parse_args(argv)
    return exit_code_of(lambda: _run(args, probe or Probe()), interrupted="\n")


def _run(args: argparse.Namespace, probe: Probe) -> int:
    job = _planned(args, probe)
    if not args.json:
        print("\n".join(_report(job)), flush=True)
    verdict, code = job.checked.verdict, 0
    built = None
    if args.plan_only:
        if not args.json:
            print("\nthe same with trtexec, where there is no Python package:\n")
            print("\n\n".join(job.commands))
            print(f"\nnext, on the device: {_again(args)}")
            print("(after trtexec: the same with --record)", flush=True)
    elif not verdict.ok and not args.force and not args.record:
        code = 1
        print(f"refused: {' '.join(verdict.problems)} (--force builds all the same)", file=sys.stderr)
    else:
        built = _built(args, job, probe)
        if not args.json:
            print(f"engines in {built.folder}")
            check = f"python -m runtime.check {job.bundle.path} --backend tensorrt"
            ask = f"python -m runtime {job.bundle.path} --backend tensorrt --image FILE --prompt TEXT"
            print(f"next: {check if args.unpruned else ask}", flush=True)
    if args.json:
        print(json.dumps(_record(job, built), indent=2), flush=True)
    return code


def _again(args: argparse.Namespace) -> str:
    """The command that builds what was planned."""
    command = build_command(args.bundle, _limits(args), args.workspace)
    if args.timing_cache is None:
        return command
    return f"{command} --timing-cache {shlex.quote(str(args.timing_cache))}"


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(
        max_images=args.max_images,
        max_prompt=args.max_prompt,
        max_new_tokens=args.max_new_tokens,
        ratio=args.ratio,
        max_ratio=args.max_ratio,
        max_image_tokens=args.max_image_tokens,
        unpruned=args.unpruned,
    )


def _planned(args: argparse.Namespace, probe: Probe) -> _Job:
    bundle = load_bundle(args.bundle, verify=not args.plan_only)
    target = None if args.target is None else target_named(args.target)
    if target is None and args.plan_only:
        target = _elsewhere(probe)
    identity = find_identity(probe) if target is None else target.identity
    if target is not None and not args.plan_only:
        own = find_identity(probe)
        if (own.gpu, own.sm) != (identity.gpu, identity.sm):
            raise EngineError(
                f"target {target.name} is {identity}, but this is {own}, and engines are built where they "
                "run: leave --target out, or add --plan-only"
            )
        identity = own
    if args.board is not None:
        free: FreeMemory | None = BOARDS[args.board]
    else:  # this machine's memory says nothing about another device
        free = None if target is not None and args.plan_only else _free(identity, probe)
    limits = _limits(args)
    most = TARGETS["jetpack6"].workspace if target is None else target.workspace
    plan = plan_engines(bundle.manifest, limits, args.workspace or _workspace(free, most))
    sizes = sizes_from_config(_config(bundle), bundle.manifest)
    need = memory_of(plan, bundle.manifest, sizes)
    checked = preflight(need, free)
    folder = engine_folder(bundle, identity)
    cache = folder / TIMING_CACHE if args.timing_cache is None else args.timing_cache
    paths = TrtexecPaths(find_trtexec(probe) or "trtexec", bundle.path, folder, cache)
    commands = [f"mkdir -p {shlex.quote(str(folder))}"]
    commands += [shell_text(trtexec_command(plan, graph, paths)) for graph in plan.graphs]
    saving = _saving(bundle, plan, need, sizes)
    return _Job(bundle, identity, plan, checked, sizes.guessed, saving, tuple(commands))


def _saving(bundle: Bundle, plan: EnginePlan, need: MemoryNeed, sizes: ModelSizes) -> str:
    """What engines would save that never keep more than the usual ratio; empty where these do not."""
    ratio = plan.limits.ratio or bundle.manifest.pruning.default_ratio or 1.0
    if not LEAST_RATIO <= ratio < plan.limits.max_ratio:
        return ""
    kept = plan_engines(bundle.manifest, replace(plan.limits, max_ratio=ratio), plan.workspace)
    saved = need.run - memory_of(kept, bundle.manifest, sizes).run
    return (
        f"--max-ratio {ratio:g} would save {saved / (1 << 20):.1f} MiB: a cache of {kept.capacity} instead "
        f"of {plan.capacity} rows, and scratch memory for as many"
    )


def _elsewhere(probe: Probe) -> EngineTarget | None:
    """What to plan for where no engine can be built; None on a device that can."""
    try:
        find_identity(probe)
    except EngineError:
        target = TARGETS["jetpack6"]
        print(f"nothing to build engines with here: planned for {target.title}", file=sys.stderr)
        return target
    return None


def _built(args: argparse.Namespace, job: _Job, probe: Probe) -> EngineSet:
    if args.record:
        return record_engines(job.bundle, job.identity, job.plan)
    if not args.force:
        with contextlib.suppress(EngineError):  # none yet, or of another plan
            found = find_engines(job.bundle, job.identity)
            if found.plan == job.plan:
                print("these engines are there already: --force builds them again", file=sys.stderr)
                return found
    trt = probe.module()
    if trt is None:
        commands = "\n\n".join(job.commands)
        print(commands, file=sys.stderr if args.json else sys.stdout, flush=True)
        raise EngineError(
            "the Python package tensorrt is not installed here, only trtexec: run the commands above and "
            "then this one with --record, or install it (Jetson: sudo apt install python3-libnvinfer)"
        )
    start = time.perf_counter()

    def progress(graph: GraphPlan) -> None:
        print(f"  {time.perf_counter() - start:6.0f} s  building {graph.graph}", file=sys.stderr, flush=True)

    return build_engines(job.bundle, job.identity, EngineBuilder(trt, job.plan), args.timing_cache, progress)


def _free(identity: EngineIdentity, probe: Probe) -> FreeMemory:
    """Of this machine; a GPU with memory of its own is asked for it."""
    system = free_memory(probe.root)
    if identity.jetpack is not None:
        return system
    query = "--query-gpu=memory.total,memory.free"
    listed = probe.run(["nvidia-smi", query, "--format=csv,noheader,nounits"]) or ""
    found = re.search(r"^(\d+), (\d+)\s*$", listed, re.MULTILINE)
    if found is None:
        return system
    total, available = (int(each) << 20 for each in found.groups())
    return FreeMemory(total, available, None, False, system.available, system.swap)


def _workspace(free: FreeMemory | None, most: int) -> int:
    """A quarter of the memory, as a power of two, `most` at most: 1 GiB on a board of 8 GB."""
    if free is None:
        return most
    return max(_LEAST_WORKSPACE, min(most, 1 << max(0, (free.total // 4).bit_length() - 1)))


def _config(bundle: Bundle) -> dict[str, Any]:
    """`config.json` of the bundle; without one, sizes are guessed from the manifest."""
    if "config.json" not in bundle.manifest.files:
        return {}
    try:
        found = json.loads(bundle.file("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{bundle.path / 'config.json'} cannot be read ({error}): copy the bundle again"
        ) from error
    return found if isinstance(found, dict) else {}


def _report(job: _Job) -> list[str]:
    """Profiles, then memory, as text."""
    plan, need = job.plan, job.checked.need
    visual, limits = plan.visual, plan.limits
    lines = [
        f"{job.bundle.path} for {job.identity}",
        f"folder    engines/{job.identity.tag}",
        f"limits    {limits.max_images} images, {limits.max_prompt} text tokens, {limits.max_new_tokens} new "
        f"tokens, ratio up to {limits.max_ratio:g}; an image is {visual.rows} rows of the prompt, at most "
        f"{visual.most_rows}",
        f"KV cache  {plan.capacity} rows in buffers of {plan.cache_rows}; workspace "
        f"{plan.workspace >> 20} MiB",
        "",
    ]
    for graph in plan.graphs:
        for name, profile in zip(graph.profile_names, graph.profiles, strict=True):
            lines.append(f"{graph.graph} ({graph.precision}), profile {name}")
            lines += _profile_lines(profile)
    rows = [(f"weights {name}", size) for name, size in need.weights.items()]
    rows += [("KV cache", need.kv), ("inputs and outputs", need.io)]
    rows += [(f"scratch {name}", size) for name, size in need.activations.items() if size]
    rows += [("scratch, the largest for all", need.scratch)] if len(need.activations) > 1 else []
    rows += [("kept of earlier pictures, at most", need.features), ("CUDA and libraries", need.overhead)]
    rows += [("running, all of it", need.run)]
    rows += [
        ("building, at the peak", need.build_peak),
        (f"in one piece: {need.largest[0]}", need.largest[1]),
    ]
    width = max(len(name) for name, _ in rows)
    lines += ["", f"{'memory (arithmetic, not measured)':{width}}  {'MiB':>9}"]
    lines += [f"{name:{width}}  {size / (1 << 20):9.1f}" for name, size in rows]
    free = job.checked.free
    if free is None:
        lines.append("not compared with free memory: --board NAME compares with a board's")
    else:
        cma = "" if free.cma_free is None else f", {free.cma_free >> 20} MiB of it contiguous"
        lines.append(f"{'free':{width}}  {free.available / (1 << 20):9.1f} of {free.total >> 20}{cma}")
    if job.saving:
        lines.append(f"note: {job.saving}")
    if job.guessed:
        lines.append(f"note: config.json does not say {', '.join(job.guessed)}: guessed")
    verdict = job.checked.verdict
    lines += [f"does not fit: {each}" for each in verdict.problems]
    lines += [f"warning: {each}" for each in verdict.warnings]
    return lines


def _profile_lines(profile: dict[str, InputProfile]) -> list[str]:
    shown: dict[str, InputProfile] = {}
    for name, each in profile.items():  # all tensors of the cache have one shape
        shown["past_key_values.*" if name.startswith("past_key_values.") else name] = each
    width = max(map(len, shown))
    return [
        f"  {name:{width}}  {' .. '.join('x'.join(map(str, point)) for point in each.points)}"
        + ("  (values)" if each.values else "")
        for name, each in shown.items()
    ]


def _record(job: _Job, built: EngineSet | None) -> dict[str, Any]:
    need, free = job.checked.need, job.checked.free
    verdict = job.checked.verdict
    return {
        "bundle": str(job.bundle.path),
        "identity": asdict(job.identity),
        "tag": job.identity.tag,
        "plan": job.plan.to_dict(),
        "memory": {**asdict(need), "run": need.run, "build_peak": need.build_peak},
        "guessed": list(job.guessed),
        "free": None if free is None else asdict(free),
        "fits": None if free is None else verdict.ok,
        "problems": list(verdict.problems),
        "warnings": list(verdict.warnings),
        "trtexec": list(job.commands),
        "engines": None if built is None else str(built.folder),
    }


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?B?)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[(found[2] or "")[:1].lower()]) if found else 0
    if size < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of 1 MiB or more: give e.g. 2GiB or 512MiB")
    return size


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Plan and build the TensorRT engines of a bundle, on the device that they will run on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", help="directory with bundle.json, made by `python -m export.build`")
    add(
        "--workspace",
        type=_bytes,
        metavar="SIZE",
        help="scratch memory of the builder (default: 2GiB or less)",
    )
    add("--max-images", type=int, default=4, metavar="N", help="images of a prompt (default 4)")
    add("--max-prompt", type=int, default=512, metavar="N", help="text tokens of a prompt (default 512)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="tokens of an answer (default 256)")
    add("--ratio", type=float, metavar="R", help="fraction KEPT to tune for (default: the bundle's own)")
    add("--max-ratio", type=float, default=1.0, metavar="R", help="greatest fraction KEPT (default 1)")
    add(
        "--max-image-tokens",
        type=int,
        default=1280,
        metavar="N",
        help="tokens of the largest image before pruning, where a model takes images in their own size "
        "(default 1280)",
    )
    add("--unpruned", action="store_true", help="build the encoder without pruning, too")
    add("--timing-cache", type=Path, metavar="FILE", help="read and written; makes the next build shorter")
    add("--target", metavar="NAME", help=f"another device: {', '.join(TARGETS)} (default: this one)")
    add("--board", choices=tuple(BOARDS), help="compare with the memory of a board (default: this one's)")
    add("--plan-only", action="store_true", help="print plan and trtexec commands; needs no TensorRT")
    add("--record", action="store_true", help="build nothing: take up the engines that trtexec built")
    add("--force", action="store_true", help="build although it would not fit, or is there already")
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser


if __name__ == "__main__":
    sys.exit(main())

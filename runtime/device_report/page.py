"""A device report as one Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runtime.device_report.record import BackendRecord, Level, Loop, Memory, Report

__all__ = ["page_of"]

_MILLI = ("preprocess", "vision", "embed", "prefill", "ttft")


def page_of(report: Report) -> str:
    """The page; every number in it is in `report.json` too."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    machine, bundle = report.machine, report.bundle
    yield from (f"# {bundle.name} on {machine.model}", "", _verdict(report), "")
    precisions = sorted(set(bundle.precisions.values()))
    memory = ", ".join(f"{name} {_bytes(size)}" for name, size in machine.memory.items())
    facts = {
        "system": machine.system,
        "GPU": " ".join(
            filter(None, (machine.gpu, machine.compute_capability and f"SM {machine.compute_capability}"))
        ),
        "JetPack": " ".join(filter(None, (machine.jetpack, machine.l4t and f"(L4T {machine.l4t})"))),
        "CUDA": machine.cuda or "",
        "TensorRT": machine.tensorrt or "",
        "driver": machine.driver or "",
        "power mode": machine.power_mode or "",
        "cores": str(machine.cores),
        "memory": memory,
        "temperatures": ", ".join(f"{name} {value:.0f} C" for name, value in machine.temperatures.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        "bundle": f"{bundle.architecture}, {', '.join(precisions)}, {_bytes(bundle.nbytes)}, "
        f"bundle.json {bundle.sha256[:16]}",
        "prompt": report.prompt,
        "made": f"{report.made} by `{report.command}`",
    }
    yield from _table(("", ""), [(name, value) for name, value in facts.items() if value])
    for backend in report.backends:
        yield from _backend(backend)
    if report.not_run:
        yield from ("## Not run", "")
        yield from _table(("backend", "why"), [(each.what, each.why) for each in report.not_run])


def _verdict(report: Report) -> str:
    if not report.backends:
        return "No backend ran: see below."
    parts = [f"{each.name} {'agrees' if each.ok else 'DOES NOT PASS'}" for each in report.backends]
    return f"{', '.join(parts)}: every stage, every answer repeated, no growth of memory, as far as it ran."


def _backend(backend: BackendRecord) -> Iterator[str]:
    yield from (f"## {backend.name}", "")
    if backend.levels:
        yield from _latencies(backend.levels)
    if backend.parity is not None:
        yield from _parity(backend)
    if backend.loop is not None:
        yield from (_loop(backend.loop), "")
    for graph, placement in backend.placement.items():
        counts = ", ".join(f"{provider} {sum(own.values())}" for provider, own in placement.items())
        yield f"- nodes of {graph}: {counts}"
    if backend.placement:
        yield ""
    if backend.refusals:
        yield from ("What could not be run:", "")
        yield from _table(("what", "why"), [(each.what, each.why) for each in backend.refusals])


def _latencies(levels: Sequence[Level]) -> Iterator[str]:
    first = levels[0]
    yield (
        f"Milliseconds, median / p95 of {first.runs} runs after {first.warmups}; answers of "
        f"{first.new_tokens} tokens. `first` is the first request, with the opening of graphs."
    )
    yield ""
    heads = ("ratio", "visual tokens", *_MILLI, "first", "tokens/s", "KV cache", "RSS peak", "device")
    yield from _table(heads, [_level(level) for level in levels])
    wavering = [f"{level.ratio:g}" for level in levels if not level.same_answer]
    if wavering:
        yield from (f"The answers of the runs differ from each other at ratio {', '.join(wavering)}.", "")


def _level(level: Level) -> tuple[str, ...]:
    stages = (level.stages[name] for name in _MILLI)
    speed = "-" if level.tokens_per_second is None else f"{level.tokens_per_second:.1f}"
    return (
        f"{level.ratio:g}",
        f"{level.visual_before} -> {level.visual_after}",
        *(f"{1e3 * stage.median:.1f} / {1e3 * stage.p95:.1f}" for stage in stages),
        f"{1e3 * level.first:.0f}",
        speed,
        f"{_bytes(level.kv)} of {_bytes(level.kv_unpruned)}",
        _bytes(level.memory.peak_rss),
        _bytes(level.memory.device),
    )


def _parity(backend: BackendRecord) -> Iterator[str]:
    parity = backend.parity or {}
    verdict = "agrees" if parity["ok"] else f"first stage that diverges: {parity['first_divergence']}"
    kept = backend.kept_agreement
    share = "" if kept is None else f"; {kept:.2%} of the reference's kept tokens are kept"
    yield from (f"Parity with the golden tensors: {verdict}{share}.", "")
    rows = []
    for stage in parity["stages"]:
        difference = "-" if stage["max_abs_diff"] is None else f"{stage['max_abs_diff']:.1e}"
        tolerance = "exact" if stage["tolerance"] == 0 else f"{stage['tolerance']:.1e}"
        result = "skipped" if stage["skipped"] else "ok" if stage["ok"] else "DIFFERS"
        rows.append((stage["name"], difference, tolerance, result, stage["detail"]))
    yield from _table(("stage", "difference", "tolerance", "result", ""), rows)


def _loop(loop: Loop) -> str:
    changed = "none" if not loop.changed_answers else f"{loop.changed_answers}"
    own = [
        f"{_bytes(size)} more {what}"
        for what, size in (
            ("RSS", loop.growth_rss),
            ("of its own buffers on the device", loop.growth_buffers),
        )
        if size is not None
    ]
    grown = (
        [f"in the second half of them the process needed {' and '.join(own)} than in the first"]
        if own
        else []
    )
    if loop.growth_device is not None:
        grown.append(
            f"the use of the whole device, which other processes share, went on rising by "
            f"{_bytes(loop.growth_device)} (what was taken once does not count)"
        )
    return (
        f"{loop.requests} requests with {loop.ratios} changing ratios in {loop.seconds:.1f} s: {changed} "
        f"answered otherwise than before; {'; '.join(grown) or 'growth of memory is not known'} (allowed: "
        f"{_bytes(loop.allowed_growth)} each). Then: {_memory(loop.memory)}, at most "
        f"{_bytes(loop.most_device)}."
    )


def _memory(memory: Memory) -> str:
    buffers = "" if memory.buffers is None else f" ({_bytes(memory.buffers)} of it the runtime's buffers)"
    return (
        f"RSS {_bytes(memory.rss)}, at most {_bytes(memory.peak_rss)}; {_bytes(memory.available)} available; "
        f"{_bytes(memory.device)} in use on the device{buffers}"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""


def _bytes(size: int | None) -> str:
    if size is None:
        return "-"
    if abs(size) >= 1 << 30:
        return f"{size / (1 << 30):.2f} GiB"
    return f"{size / (1 << 20):.1f} MiB"

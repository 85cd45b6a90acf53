"""A result in a few lines for people."""

from __future__ import annotations

from runtime.result import Result

__all__ = ["summary_lines"]

_MIB = 1 << 20


def summary_lines(result: Result) -> list[str]:
    """Token counts, time to first token by stage, speed and memory."""
    times = result.timings
    stages = ("preprocess", "vision", "embed", "prefill")
    split = " + ".join(f"{name} {getattr(times, name) * 1e3:.0f}" for name in stages)
    lines = [
        f"visual tokens   {_counts(result)}",
        f"prompt          {_prompt(result)}",
        f"first token     {times.ttft * 1e3:.0f} ms = {split}   (graphs loaded in {times.load * 1e3:.0f} ms)",
        f"answer          {_speed(result)}",
        f"KV cache        {_cache(result)}",
        f"peak memory     {_size(result.peak_rss_bytes)}",
    ]
    if not result.pruned:
        lines.insert(1, f"not pruned      {result.reason}")
    return lines


def _counts(result: Result) -> str:
    images = len(result.visual_tokens_after)
    if not images:
        return "none"
    before, after = sum(result.visual_tokens_before), sum(result.visual_tokens_after)
    text = f"{before} → {after}"
    if images > 1:
        pairs = list(zip(result.visual_tokens_before, result.visual_tokens_after, strict=True))
        if len(set(pairs)) == 1:
            text += f" ({images} images, {pairs[0][0]} → {pairs[0][1]} each)"
        else:
            text += f" ({images} images: {', '.join(f'{old} → {new}' for old, new in pairs)})"
    return text


def _prompt(result: Result) -> str:
    text = f"{result.prompt_tokens} tokens"
    return f"{text}, {result.reused_tokens} of them from the KV cache" if result.reused_tokens else text


def _speed(result: Result) -> str:
    text = f"{len(result.token_ids)} tokens ({result.finish_reason})"
    speed = result.tokens_per_second
    return text if speed is None else f"{text}, {speed:.1f} tokens/s"


def _cache(result: Result) -> str:
    text = f"{_size(result.kv_bytes)} ({_size(result.kv_bytes_unpruned)} without pruning)"
    return f"{text}, {_size(result.kv_bytes_allocated)} allocated"


def _size(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count / 1024:.1f} KiB"

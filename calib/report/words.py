"""Numbers as a reader wants them: percent, milliseconds, bytes, times."""

from __future__ import annotations

import math

_GAP = "\N{NO-BREAK SPACE}"  # between a number and its unit

__all__ = ["as_bytes", "as_nats", "as_percent", "as_ratio", "as_seconds", "as_times", "sentence"]


def as_percent(share: float) -> str:
    """`98.7 %`; never 100 % (or 0 %) for what is not all (or nothing)."""
    if not math.isfinite(share):
        return "–"
    shown = round(100 * share, 1)
    if shown >= 100 and share < 1:
        shown = 99.9
    if shown <= 0 < share:
        shown = 0.1
    return f"{shown:g}{_GAP}%" if shown in (0, 100) else f"{shown:.1f}{_GAP}%"


def as_ratio(ratio: float) -> str:
    """`25 %`, `12.6 %`: a ratio of tokens kept."""
    return f"{100 * ratio:.3g}{_GAP}%"


def as_nats(divergence: float) -> str:
    """`0.0304`, `< 0.001`."""
    if not math.isfinite(divergence):
        return "–"
    return f"<{_GAP}0.001" if 0 < divergence < 1e-3 else f"{divergence:.3g}"


def as_seconds(seconds: float) -> str:
    """`152 ms`, `3.4 ms`, `2.1 s`."""
    if not math.isfinite(seconds):
        return "–"
    if seconds >= 1:
        return f"{seconds:.1f}{_GAP}s" if seconds < 100 else f"{seconds:.0f}{_GAP}s"
    millis = 1000 * seconds
    return f"{millis:.0f}{_GAP}ms" if millis >= 10 else f"{millis:.2g}{_GAP}ms"


def as_bytes(size: float) -> str:
    """`3.1 MiB`, `640 KiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            number = size / unit
            return f"{number:.0f}{_GAP}{name}" if number >= 100 else f"{number:.1f}{_GAP}{name}"
    return f"{size:.0f}{_GAP}B"


def as_times(before: float, after: float) -> str | None:
    """`1.8` where `before` is 1.8 x `after`; None where there is nothing to compare."""
    if not (before > 0 and after > 0):
        return None
    return f"{before / after:.1f}" if before / after < 100 else f"{before / after:.0f}"


def sentence(text: str) -> str:
    """With a capital letter and a full stop, as a page has it; names as `fp32` stay as they are."""
    text = text.strip()
    first = text.partition(" ")[0].rstrip(",;:.")
    named = any(letter.isdigit() or letter in "=._" for letter in first)
    start = text[:1] if named else text[:1].upper()
    return start + text[1:] + ("" if text.endswith((".", "!", "?", ":")) else ".")

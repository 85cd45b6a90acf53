"""How low can the demo go? `calib.ratio` on held-out scenes: twice on other scenes, once more on the first
ones with another seed.

    python -m bench.calibration                       1,500 scenes a time
    python -m bench.calibration --samples 40 --repeats 1

The bundled checkpoint is a small model on a made-up task: the curve shows what the calibration finds there,
not what it will find for your model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.environment import ROOT, describe_environment
from bench.errors import BenchError
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table, write_markdown
from bench.workspace import DEMO
from calib.settings import LADDER
from demo.curve import EVALUATION_SEED
from demo.write_data import write_data

__all__ = ["calibrate_demo", "main", "rungs_between"]

_PLOTS = ("agreement.png", "agreement_kv.png", "accuracy.png")


def calibrate_demo(samples: int, repeats: int, least: float, settings: Settings) -> Result:
    """One calibration per repeat, of other scenes each time, and the first again with another seed.

    Raises:
        BenchError: a calibration failed; its own message is on stderr.
    """
    bundle = settings.workspace.bundle(DEMO)
    found, files = [], []
    for repeat in range(repeats):
        folder = settings.workspace.root / f"calibration-{repeat}"
        seed = EVALUATION_SEED + repeat
        files.append(write_data(folder / "data", samples, seed))
        status(f"repeat {repeat + 1} of {repeats}: {samples} scenes of seed {seed}")
        found.append(_calibrate(bundle, files[-1], folder / "work", [least, seed, settings.threads]))
    status("the scenes of repeat 1 again, another seed")
    other = [least, EVALUATION_SEED + 1000, settings.threads]
    again = _calibrate(bundle, files[0], settings.workspace.root / "calibration-again" / "work", other)
    for name in _PLOTS:
        shutil.copyfile(
            settings.workspace.root / "calibration-0" / "work" / name,
            settings.results / f"calibration-demo-{name}",
        )
    tables = tuple(
        _curve(study, f"The demo, {samples} scenes, repeat {number + 1}")
        for number, study in enumerate(found)
    )
    picks, same = [_picked(each) for each in found], [_picked(found[0]), _picked(again)]
    figures = {
        "samples": samples,
        "least": least,
        "picks": picks,
        "steps_between_picks": rungs_between(picks),
        "picks_same_scenes": same,
        "steps_between_picks_same_scenes": rungs_between(same),
        "curves": [{_name(row["setting"]): _figures(row) for row in each["settings"]} for each in found],
    }
    return Result(
        "calibration-demo",
        describe_environment(settings.threads),
        figures,
        {},
        tables,
        _notes(found, picks, same),
    )


def rungs_between(picks: Sequence[float | None]) -> int | None:
    """Steps of the ladder between the lowest and the highest of several picks; None where one is missing."""
    rungs = (1.0, *LADDER)
    if not picks or any(pick not in rungs for pick in picks):
        return None
    places = [rungs.index(pick) for pick in picks if pick is not None]
    return max(places) - min(places)


def _calibrate(bundle: Path, rows: Path, work: Path, numbers: Sequence[float]) -> dict[str, Any]:
    least, seed, workers = numbers
    command = [sys.executable, "-m", "calib.ratio", str(bundle), "--data", str(rows), "--work", str(work)]
    command += ["--min-agreement", str(least), "--seed", str(seed), "--workers", str(workers)]
    done = subprocess.run(
        [*command, "--dry-run", "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode not in (0, 1) or not done.stdout:  # 1: nothing meets the limit, which is a result
        raise BenchError(f"calib.ratio ended with status {done.returncode}: see its message above")
    study: dict[str, Any] = json.loads(done.stdout)
    return study


def _curve(study: Mapping[str, Any], title: str) -> Table:
    columns = (
        *("selector", "ratio", "tokens", "first token as unpruned (95 %)", "answer", "right (unpruned is 1)"),
        *("KL, nats", "KV MiB"),
    )
    whole = next(row for row in study["settings"] if row["setting"]["selector"] == "none")
    return Table(title, columns, tuple(_row(row, whole) for row in study["settings"]))


def _row(row: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, ...]:
    first, right = row["first"], row["accuracy"]["mean"] / whole["accuracy"]["mean"]
    return (
        row["setting"]["selector"],
        f"{row['setting']['ratio']:g}",
        f"{row['after']:.4g}",
        f"{first['mean']:.3f} ({first['low']:.3f}-{first['high']:.3f})",
        f"{row['answer']['mean']:.3f}",
        f"{right:.3f}",
        f"{row['divergence']['mean']:.2g}",
        f"{row['kv_bytes'] / (1 << 20):.2f}",
    )


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("samples", "after", "first", "answer", "accuracy", "divergence", "kv_bytes")
    return {name: row[name] for name in kept}


def _name(setting: Mapping[str, Any]) -> str:
    return f"{setting['selector']} {setting['ratio']:g}"


def _picked(study: Mapping[str, Any]) -> float | None:
    return None if study["pick"] is None else study["pick"]["setting"]["ratio"]


def _notes(
    found: Sequence[Mapping[str, Any]], picks: Sequence[float | None], same: Sequence[float | None]
) -> tuple[str, ...]:
    return (
        f"Limit: {found[0]['constraint']}. Picked on other scenes each time: {_shown(picks)}; on the scenes "
        f"of repeat 1 with two seeds: {_shown(same)}.",
        "Agreement is with the unpruned model, which answers "
        + " and ".join(f"{each['settings'][0]['accuracy']['mean']:.3f}" for each in found)
        + " of the questions right. `resize` on this tower of one size is a stand-in: a small picture in the "
        "corner of an empty canvas.",
    )


def _shown(picks: Sequence[float | None]) -> str:
    shown = ", ".join("nothing" if pick is None else f"{pick:g}" for pick in picks)
    steps = rungs_between(picks)
    return shown if steps is None or len(picks) < 2 else f"{shown} (steps of the ladder apart: {steps})"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.calibration", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--samples", type=int, default=1500, help="scenes of a calibration (default 1500)")
    parser.add_argument("--repeats", type=int, default=2, help="calibrations, of other scenes (default 2)")
    parser.add_argument("--min-agreement", type=float, default=0.98, help="(default 0.98)")
    add_common_options(parser, rounds=None)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        if options.samples < 1 or options.repeats < 1:
            raise BenchError(
                f"samples is {options.samples} and repeats {options.repeats}: give at least 1 of each"
            )
        result = calibrate_demo(options.samples, options.repeats, options.min_agreement, settings)
        report(result, settings)
        write_markdown(result, settings.results)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())

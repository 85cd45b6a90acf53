"""Checkpoints and bundles that the measurements share, made again when what they come from changes."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoints import Recipe, ensure_checkpoint, weight_bytes
from bench.environment import ROOT, package_versions
from bench.errors import BenchError
from bench.memory import ChildUsage, run_measured
from runtime.bundle import Bundle
from runtime.layouts.single import SingleLayout

__all__ = ["DEFAULT_WORK", "DEMO", "BuildCost", "Workspace", "measure_build", "single_layout"]

DEFAULT_WORK = ROOT / "bundles" / "bench"
DEMO = "demo"
BUILT_FROM = ("export", "fopru_graph", "runtime", "calib/precision")


@dataclass(frozen=True)
class BuildCost:
    """What one `python -m export.build` took; `steps` are the seconds of its parts, as it reports them."""

    usage: ChildUsage
    weight_bytes: int
    bundle_bytes: int
    command: str
    steps: dict[str, float]


def measure_build(checkpoint: Path, bundle: Path, ratio: float, precision: str = "fp32") -> BuildCost:
    """Build a bundle in a child process; `precision` as `python -m export.build` takes it.

    Raises:
        BenchError: the build failed; its own message is on stderr.
    """
    arguments = ["--model", str(checkpoint), "--output", str(bundle), "--ratio", str(ratio), "--json"]
    if precision != "fp32":
        arguments += ["--precision", precision]
    usage = run_measured([sys.executable, "-m", "export.build", *arguments])
    command = " ".join(["python", "-m", "export.build", *arguments]).replace(f"{ROOT}/", "")
    if usage.returncode != 0:
        raise BenchError(f"`{command}` ended with status {usage.returncode}: see its message above")
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    steps = {step["name"]: float(step["seconds"]) for step in json.loads(usage.stdout)["steps"]}
    return BuildCost(usage, weight_bytes(checkpoint), size, command, steps)


@dataclass(frozen=True)
class Workspace:
    """A directory of checkpoints and bundles, by configuration name."""

    root: Path = DEFAULT_WORK
    ratio: float = 0.3

    def checkpoint(self, name: str) -> Path:
        """The random-weight checkpoint of a published configuration, or the trained one of the demo."""
        if name == DEMO:
            return ROOT / "demo" / "checkpoint"
        return ensure_checkpoint(Recipe(name), self.root / "checkpoints" / name)

    def bundle(self, name: str) -> Path:
        """The bundle of that checkpoint, built again when the checkpoint or what exports it has changed."""
        return self.bundle_of(self.checkpoint(name), name)

    def bundle_of(self, checkpoint: Path, name: str, precision: str = "fp32") -> Path:
        """The bundle called `name` of a checkpoint, built again when that or what exports it has changed."""
        bundle, stamp = self._bundle_paths(name)
        if stamp.is_file() and bundle.is_dir() and stamp.read_text() == self._record(checkpoint, precision):
            return bundle
        self._build(checkpoint, name, precision)
        return bundle

    def rebuild(self, name: str) -> BuildCost:
        """Build the bundle whether or not it is there."""
        return self._build(self.checkpoint(name), name)

    def _build(self, checkpoint: Path, name: str, precision: str = "fp32") -> BuildCost:
        bundle, stamp = self._bundle_paths(name)
        stamp.unlink(missing_ok=True)
        record = self._record(checkpoint, precision)  # before the build: an edit during it makes it stale
        cost = measure_build(checkpoint, bundle, self.ratio, precision)
        stamp.write_text(record)
        return cost

    def _record(self, checkpoint: Path, precision: str) -> str:
        return f"{source_digest(checkpoint)} {checkpoint.resolve()} ratio={self.ratio} {precision}"

    def _bundle_paths(self, name: str) -> tuple[Path, Path]:
        # The stamp lies beside the bundle: a bundle holds nothing but what its manifest lists.
        return self.root / name, self.root / f"{name}.sources"


def single_layout(bundle: Bundle) -> SingleLayout:
    """The layout of a bundle whose images are one picture each, all of one size.

    Raises:
        BenchError: the images of this bundle are cut or sized otherwise.
    """
    layout = bundle.manifest.layout
    if not isinstance(layout, SingleLayout):
        raise BenchError(
            f"{bundle.path} has a layout of kind {layout.kind!r}, but this measurement is of one picture of "
            'one size per image ("single"): use python -m bench.families or python -m bench.tiles'
        )
    return layout


def source_digest(checkpoint: Path) -> str:
    """SHA-256 over what decides a bundle: the exporter, the versions of torch, onnx, transformers and the
    like, and size and date of the checkpoint's files.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(package_versions(), sort_keys=True).encode())
    for package in BUILT_FROM:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    for path in sorted(checkpoint.iterdir()):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()

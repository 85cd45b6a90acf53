"""Where engines lie: `BUNDLE/engines/<tag>/<graph>.engine`, with `engines.json` that says what they are of.

    engines/orin-sm87-trt10.3.0-jp6.2/
        engines.json       identity, plan, and of each engine its size and the hash of its ONNX files
        timing.cache       makes the next build shorter
        vision_encoder_fopru.engine  embed_tokens.engine  decoder_model_portable.engine

Nothing of it is listed in `bundle.json`: engines belong to one device, the bundle to all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from runtime import contract
from runtime.bundle import Bundle, load_bundle
from runtime.decode import decode
from runtime.errors import BundleError, EngineError
from runtime.manifest import Manifest
from runtime.output import write_whole
from runtime.tensorrt.builder import EngineBuilder
from runtime.tensorrt.identity import EngineIdentity
from runtime.tensorrt.memory import weight_files
from runtime.tensorrt.plan import EnginePlan, GraphPlan, Limits
from runtime.version import __version__

__all__ = [
    "ENGINES",
    "RECORD",
    "TIMING_CACHE",
    "EngineFile",
    "EngineSet",
    "build_command",
    "build_engines",
    "engine_folder",
    "find_engine",
    "find_engines",
    "graph_hash",
    "record_engines",
]

ENGINES = "engines"
RECORD = "engines.json"
TIMING_CACHE = "timing.cache"
_FORMAT = 1
_LEAST_ENGINE = 1 << 10  # that of one small operator has several KiB
_HEAD = 4096  # bytes that are looked at
_ONNX_START = 0x08  # field 1 of a ModelProto, its IR version


@dataclass(frozen=True)
class EngineFile:
    """One engine: file name, size, and `graph_hash` of what it was built from."""

    file: str
    bytes: int
    onnx: str


@dataclass(frozen=True)
class EngineSet:
    """Engines of one bundle on one device, found and checked."""

    folder: Path
    identity: EngineIdentity
    plan: EnginePlan
    files: dict[str, EngineFile]

    def path(self, graph: str) -> Path:
        """The engine of a graph.

        Raises:
            EngineError: it was not built.
        """
        if graph not in self.files:
            unpruned = self.plan.limits.unpruned or graph == contract.VISION_ENCODER
            limits = replace(self.plan.limits, unpruned=unpruned)
            again = build_command(str(self.folder.parent.parent), limits, self.plan.workspace)
            raise EngineError(
                f"{self.folder} has no engine of {graph}, only of {', '.join(self.files)}: run `{again}`"
            )
        return self.folder / self.files[graph].file


def build_command(bundle: str, limits: Limits, workspace: int | None = None) -> str:
    """The command that builds engines of these limits: others would make another plan."""
    words, default = ["python", "-m", "runtime.engine", bundle], Limits()
    for field in fields(Limits):
        value, flag = getattr(limits, field.name), f"--{field.name.replace('_', '-')}"
        if value != getattr(default, field.name) and not isinstance(value, bool):
            words += [flag, str(value)]
    words += [] if workspace is None else ["--workspace", f"{workspace >> 20}MiB"]
    return shlex.join([*words, "--unpruned"] if limits.unpruned else words)


def engine_folder(bundle: Bundle, identity: EngineIdentity) -> Path:
    """Where the engines of a bundle for a device are."""
    return bundle.path / ENGINES / identity.tag


def graph_hash(manifest: Manifest, graph: str) -> str:
    """SHA-256 over the names and hashes of a graph's files: other weights make it another graph."""
    digest = hashlib.sha256()
    for name in weight_files(manifest, graph):
        digest.update(f"{name} {manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def find_engines(bundle: Bundle, identity: EngineIdentity) -> EngineSet:
    """The engines of a bundle for this device.

    Raises:
        EngineError: none, those of another device, or of other graphs than the bundle now has.
    """
    folder = engine_folder(bundle, identity)
    run = f"run `python -m runtime.engine {bundle.path}`"
    if not (folder / RECORD).is_file():
        raise EngineError(f"{bundle.path} has no engines for {identity}{_others(bundle, identity)}: {run}")
    record = _record(folder / RECORD, run)
    if record.identity != identity:
        raise EngineError(
            f"{folder} holds engines for {record.identity}, but this is {identity}, and an engine runs where "
            f"it was built only: {run}"
        )
    for graph, file in record.engines.items():
        if graph not in bundle.manifest.graphs or file.onnx != graph_hash(bundle.manifest, graph):
            raise EngineError(
                f"the bundle's {graph} has changed since {folder / file.file} was built from it: {run}"
            )
        path = folder / file.file
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise EngineError(f"{path} is absent or has another size than {RECORD} says: {run}")
    return EngineSet(folder, identity, record.plan, record.engines)


def find_engine(graph: Path, identity: EngineIdentity) -> Path:
    """The engine of an ONNX file of a bundle, by that file's path; its sizes and hashes are not read again.

    Raises:
        BundleError: the file is not in a bundle.
        EngineError: as `find_engines`, or the bundle does not list the file.
    """
    bundle = load_bundle(graph.parent.parent, verify=False)
    for name, info in bundle.manifest.graphs.items():
        if (bundle.path / info.file) == graph:
            return find_engines(bundle, identity).path(name)
    raise EngineError(
        f"{graph} is no graph of the bundle {bundle.path}: give one of "
        f"{', '.join(info.file for info in bundle.manifest.graphs.values())}"
    )


def build_engines(
    bundle: Bundle,
    identity: EngineIdentity,
    builder: EngineBuilder,
    timing_cache: Path | None = None,
    progress: Callable[[GraphPlan], None] | None = None,
) -> EngineSet:
    """Build all engines of a plan into the folder of the device, whole or not at all.

    A timing cache is read from `timing_cache`, else from the folder's own of an earlier build; it is written
    to both.

    Raises:
        EngineError: a graph cannot be built, or the folder cannot be written.
    """
    folder = engine_folder(bundle, identity)
    known = timing_cache if timing_cache is not None and timing_cache.is_file() else folder / TIMING_CACHE
    partial: Path | None = None
    try:
        folder.parent.mkdir(exist_ok=True)
        if known.is_file():
            builder.timings = known.read_bytes()
        _clear_leftovers(folder)
        partial = Path(tempfile.mkdtemp(prefix=f"{_partial_prefix(folder)}{os.getpid()}.", dir=folder.parent))
        files = {}
        for graph in builder.plan.graphs:
            if progress is not None:
                progress(graph)
            name = f"{graph.graph}.engine"
            size = builder.build(bundle.graph(graph.graph), graph, partial / name)
            files[graph.graph] = EngineFile(name, size, graph_hash(bundle.manifest, graph.graph))
            if timing_cache is not None:
                write_whole(timing_cache, builder.timings)
        (partial / TIMING_CACHE).write_bytes(builder.timings)
        (partial / RECORD).write_text(_record_text(identity, builder.plan, files))
        partial.chmod(0o755)  # a temporary folder is private
        _replace(partial, folder)
    except OSError as error:
        raise EngineError(
            f"the engines cannot be written to {folder} ({error}): free some space, or copy the bundle to a "
            "disk that can be written"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return EngineSet(folder, identity, builder.plan, files)


def record_engines(bundle: Bundle, identity: EngineIdentity, plan: EnginePlan) -> EngineSet:
    """Take up engines that `trtexec` built from the commands of a plan: writes `engines.json` beside them.

    TensorRT documents no header of an engine, so that a file is one is not checked: refused is what certainly
    is none, a folder, a few bytes, text, or an ONNX graph. Whether it is of this graph, this plan and this
    device shows when it is loaded.

    Raises:
        EngineError: one is missing, or certainly no engine.
    """
    folder = engine_folder(bundle, identity)
    files = {}
    for graph in plan.graphs:
        path = folder / f"{graph.graph}.engine"
        wrong = _no_engine(path)
        if wrong:
            raise EngineError(
                f"{wrong}: run its trtexec command first, which `python -m runtime.engine {bundle.path} "
                "--plan-only` prints"
            )
        onnx = graph_hash(bundle.manifest, graph.graph)
        files[graph.graph] = EngineFile(path.name, path.stat().st_size, onnx)
    write_whole(folder / RECORD, _record_text(identity, plan, files).encode())
    return EngineSet(folder, identity, plan, files)


def _no_engine(path: Path) -> str:
    """Why a file is certainly no engine, empty where it may be one.

    The first bytes of engines differ between products and releases, with sizes behind them that text has not.
    """
    if not path.is_file():
        return f"there is no engine {path}"
    size = path.stat().st_size
    if size < _LEAST_ENGINE:
        return f"{path} is no engine, it has {size} bytes"
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[0] == _ONNX_START:
        return f"{path} is no engine, but begins like an ONNX graph"
    return "" if 0 in head else f"{path} is no engine, but text"


@dataclass(frozen=True)
class _Record:
    identity: EngineIdentity
    plan: EnginePlan
    engines: dict[str, EngineFile]


def _record_text(identity: EngineIdentity, plan: EnginePlan, files: dict[str, EngineFile]) -> str:
    record = {
        "format": _FORMAT,
        "created_by": __version__,
        "identity": asdict(identity),
        "plan": plan.to_dict(),
        "engines": {name: asdict(file) for name, file in files.items()},
    }
    return json.dumps(record, indent=2) + "\n"


def _record(path: Path, run: str) -> _Record:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        if data.get("format") != _FORMAT:
            raise EngineError(f"{path} has format {data.get('format')}, expected {_FORMAT}: {run}")
        engines = decode(dict[str, EngineFile], data.get("engines"), "engines")
        identity = decode(EngineIdentity, data.get("identity"), "identity")
        return _Record(identity, EnginePlan.from_dict(data.get("plan"), "plan"), engines)
    except (OSError, ValueError, AttributeError, BundleError) as error:
        raise EngineError(f"{path} cannot be read ({error}): {run}") from error


def _clear_leftovers(folder: Path) -> None:
    """Remove what builds left that were killed, which no code of theirs can: gigabytes, maybe, and a board
    that was short of memory is where it happens."""
    prefix, processes = _partial_prefix(folder), Path("/proc")
    for path in folder.parent.glob(f"{prefix}*"):
        process = path.name.removeprefix(prefix).partition(".")[0]
        if (processes / "self").exists() and not (processes / process).exists():
            shutil.rmtree(path, ignore_errors=True)


def _partial_prefix(folder: Path) -> str:
    """Of the folder of a build, before the number of its process."""
    return f".{folder.name}.build"


def _replace(partial: Path, folder: Path) -> None:
    """The new folder in the place of the old one, which is moved aside first: a folder cannot be replaced."""
    aside = partial.with_name(f"{partial.name}.old")
    if folder.exists():
        folder.rename(aside)
    try:
        partial.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _others(bundle: Bundle, identity: EngineIdentity) -> str:
    root = bundle.path / ENGINES
    found = sorted(path.parent.name for path in root.glob(f"*/{RECORD}")) if root.is_dir() else []
    found = [name for name in found if name != identity.tag and not name.startswith(".")]
    return f" (it has some for {', '.join(found)})" if found else ""

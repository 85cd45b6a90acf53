"""Damaged and hostile ONNX files: a valid pruned graph or a sentence, never a crash, a hang, or much memory.

Files are handed to child processes with little memory, so that a crash is a finding and not the end of the
tests. Run as a script, this file is that child.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.random_encoders import Sketch, build

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 20.0  # seconds for one file; it takes some hundredths
MEMORY = 2**30  # bytes beyond what the imports take
CHILDREN = 2


@dataclass(frozen=True)
class Outcome:
    """What became of one file: `pruned`, `refused` (with the sentence), or a `failure` (with what it was)."""

    kind: str
    text: str = ""


def main() -> None:
    """The child: a line with a path comes in, a line of JSON goes out."""
    import resource

    from fopru_graph import GraphError, prune_file

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for line in sys.stdin:
        source = Path(line.rstrip("\n"))
        target = source.with_name(f"{source.name}.pruned.onnx")
        try:
            prune_file(source, target)
            kind, text = _verdict(source, target)
        except GraphError as error:
            kind, text = "refused", f"{type(error).__name__}: {error}"
        except Exception as error:
            kind, text = "failure", _where(error)
        with contextlib.suppress(OSError):
            target.unlink()
        print(json.dumps([kind, text]), flush=True)


def _verdict(source: Path, target: Path) -> tuple[str, str]:
    """A pruned file is valid; strict shape inference is not asked of a file whose sizes may be damaged."""
    try:
        onnx.checker.check_model(str(target))
    except Exception as error:
        return "failure", f"{source.name} was pruned to an invalid file: {error}"
    return "pruned", ""


def _where(error: BaseException) -> str:
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if "fopru_graph" in f.filename]
    last = frames[-1] if frames else None
    place = f"{Path(last.filename).name}:{last.lineno} {last.line}" if last else "?"
    return f"{type(error).__name__}: {str(error)[:300]} at {place}"


def _command() -> list[str]:
    return [sys.executable, "-m", "tests.test_fopru_graph_fuzz"]


class _Child:
    """One process; it is started again when it dies, and killed when it takes too long."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._path = ""
        self._since = 0.0

    def give(self, path: Path) -> None:
        if self._process is None or self._process.poll() is not None:
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    _command(),
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                )
        assert self._process.stdin is not None
        self._since = time.monotonic()
        self._process.stdin.write(f"{path}\n".encode())
        self._process.stdin.flush()

    @property
    def stdout(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def take(self) -> Outcome:
        """The answer that is there, or the end of the process."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return Outcome(*json.loads(line))
        return Outcome("failure", f"the process ended with {self._process.wait()}")

    def overdue(self) -> Outcome | None:
        """A hang, which is ended."""
        if time.monotonic() - self._since < PATIENCE:
            return None
        self.close(kill=True)
        return Outcome("failure", f"it took more than {PATIENCE:.0f} seconds")

    def close(self, *, kill: bool = False) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        if kill:
            self._process.kill()
        self._process.wait()
        self._process = None


def process(paths: Sequence[Path], log: Path) -> dict[Path, Outcome]:
    """Prune every file in child processes."""
    outcomes: dict[Path, Outcome] = {}
    children = [_Child(log) for _ in range(min(CHILDREN, len(paths)))]
    waiting, busy = list(reversed(paths)), dict[_Child, Path]()
    try:
        while waiting or busy:
            for child in children:
                if child not in busy and waiting:
                    busy[child] = waiting.pop()
                    child.give(busy[child])
            ready, _, _ = select.select([child.stdout for child in busy], [], [], 1.0)
            for child in list(busy):
                outcome = child.take() if child.stdout in ready else child.overdue()
                if outcome is not None:
                    outcomes[busy.pop(child)] = outcome
    finally:
        for child in children:
            child.close(kill=bool(busy))
    return outcomes


def encoders() -> dict[str, bytes]:
    """Small valid files of several forms."""
    return {
        "softmax": build(Sketch(layers=2, feature_layer=1, opset=17)).SerializeToString(),
        "operator": build(
            Sketch(form="operator4", opset=23, packed="split", mask="image")
        ).SerializeToString(),
        "conv": build(
            Sketch(
                patches="conv",
                packed="gather",
                fixed_tokens=False,
                positions=False,
                norm="plain",
                special=2,
                join="two",
            )
        ).SerializeToString(),
    }


def failures(outcomes: dict[Path, Outcome]) -> dict[str, str]:
    return {path.name: outcome.text for path, outcome in outcomes.items() if outcome.kind == "failure"}


def write(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_undamaged_files_are_pruned(tmp_path: Path) -> None:
    outcomes = process(write(tmp_path, encoders()), tmp_path / "log")
    assert {outcome.kind for outcome in outcomes.values()} == {"pruned"}, outcomes


def test_files_that_end_early(tmp_path: Path) -> None:
    contents = {}
    for name, content in encoders().items():
        lengths = [*range(64), *np.linspace(64, len(content) - 1, 60, dtype=int), len(content) - 1]
        contents.update({f"{name}_{length}": content[:length] for length in lengths})
    outcomes = process(write(tmp_path, contents), tmp_path / "log")
    assert failures(outcomes) == {}
    assert {outcome.kind for outcome in outcomes.values()} == {"refused"}


@pytest.mark.parametrize("damage", ["bits", "bytes", "moved"])
def test_files_with_damaged_bytes(tmp_path: Path, damage: str) -> None:
    contents = {}
    for name, content in encoders().items():
        for seed in range(70):
            random, damaged = np.random.default_rng(seed), bytearray(content)
            for _ in range(random.integers(1, 5)):
                at = int(random.integers(len(damaged)))
                if damage == "bits":
                    damaged[at] ^= 1 << int(random.integers(8))
                elif damage == "bytes":
                    damaged[at] = int(random.integers(256))
                else:
                    part = damaged[at : at + int(random.integers(1, 40))]
                    damaged[at : at + len(part)] = part[::-1]
            contents[f"{name}_{seed}"] = bytes(damaged)
    outcomes = process(write(tmp_path, contents), tmp_path / "log")
    assert failures(outcomes) == {}
    assert {outcome.kind for outcome in outcomes.values()} == {"refused", "pruned"}


def test_files_of_noise(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    contents = {f"noise_{size}": random.bytes(size) for size in [*range(1, 60), 1000, 100_000]}
    contents["text"] = b"an encoder, exported by hand\n" * 50
    contents["empty"] = b""
    contents["json"] = json.dumps({"ir_version": 10, "graph": {}}).encode()
    outcomes = process(write(tmp_path, contents), tmp_path / "log")
    assert {outcome.kind for outcome in outcomes.values()} == {"refused"}, failures(outcomes)
    assert all(
        re.match("GraphFileError: .* is not a readable ONNX file", outcome.text)
        for outcome in outcomes.values()
    )


def _damaged(model: onnx.ModelProto, random: np.random.Generator) -> None:
    """One change that the format allows and that ONNX, mostly, does not."""
    graph = model.graph
    node = graph.node[int(random.integers(len(graph.node)))]
    tensor = graph.initializer[int(random.integers(len(graph.initializer)))]
    value = [*graph.input, *graph.output][int(random.integers(len(graph.input) + len(graph.output)))]
    names = [name for other in graph.node for name in other.output]
    names += [other.name for other in (*graph.initializer, *graph.input)]
    sizes = value.type.tensor_type.shape

    def pick(choices: Sequence[int]) -> int:
        return int(choices[int(random.integers(len(choices)))])

    def rename(where: object, at: int) -> None:
        where[at] = names[int(random.integers(len(names)))]  # type: ignore[index]

    def attribute() -> None:
        other: list[object] = [1.5, [9, -9, 3], "x", 2**40]
        if node.attribute:
            name = node.attribute[0].name
            node.attribute[0].CopyFrom(helper.make_attribute(name, other[int(random.integers(4))]))

    def kind() -> None:
        if node.attribute:
            node.attribute[0].type = pick(range(15))  # type: ignore[assignment]

    def dims() -> None:
        del tensor.dims[:]
        tensor.dims.extend(pick([0, -1, 1, 2, 7, 2**40]) for _ in range(random.integers(4)))

    changes: list[Callable[[], object]] = [
        lambda: node.input and rename(node.input, int(random.integers(len(node.input)))),
        lambda: node.input and node.input.pop(int(random.integers(len(node.input)))),
        lambda: node.input.append(names[int(random.integers(len(names)))]),
        lambda: node.output and rename(node.output, 0),
        lambda: node.output and node.output.pop(),
        lambda: setattr(node, "op_type", OPERATORS[int(random.integers(len(OPERATORS)))]),
        lambda: node.attribute and node.attribute.pop(),
        attribute,
        kind,
        dims,
        lambda: setattr(tensor, "data_type", pick(range(28))),
        lambda: graph.initializer.remove(tensor),
        lambda: setattr(tensor, "raw_data", random.bytes(len(tensor.raw_data))),
        lambda: value.type.tensor_type.ClearField("shape"),
        lambda: value.ClearField("type"),
        lambda: sizes.dim and setattr(sizes.dim[0], "dim_value", pick([-1, 0, 1, 2**40, 2**62])),
        lambda: sizes.dim and setattr(sizes.dim[-1], "dim_value", pick([-1, 0, 1, 2**40])),
        lambda: setattr(node, "domain", "com.microsoft"),
        lambda: setattr(model.opset_import[0], "version", pick(range(30))),
    ]
    changes[int(random.integers(len(changes)))]()


OPERATORS = (
    *("Attention", "Cast", "Concat", "Expand", "Gather", "If", "Loop", "MatMul", "Nothing", "ReduceMean"),
    *("Reshape", "Shape", "Slice", "Softmax", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
)


@pytest.mark.parametrize("name", ["softmax", "operator", "conv"])
def test_files_with_damaged_graphs(tmp_path: Path, name: str) -> None:
    contents = {}
    for seed in range(200):
        model, random = onnx.ModelProto.FromString(encoders()[name]), np.random.default_rng(seed)
        for _ in range(random.integers(1, 3)):
            _damaged(model, random)
        contents[f"{name}_{seed}"] = model.SerializeToString()
    outcomes = process(write(tmp_path, contents), tmp_path / "log")
    assert failures(outcomes) == {}
    assert {outcome.kind for outcome in outcomes.values()} == {"refused", "pruned"}


# Changes to a valid encoder (one layer, 6 patches and a class token), and what is said about them.
# `pruned` where the change does no harm.
Change = Callable[[onnx.ModelProto], object]


def _node(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def _tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _external(model: onnx.ModelProto, location: str, offset: int = 0, length: int = 1024) -> None:
    tensor = _tensor(model, "wo.0")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _huge(model: onnx.ModelProto, *sizes: int) -> None:
    tensor = _tensor(model, "wo.0")
    del tensor.dims[:]
    tensor.dims.extend(sizes)


def _cycle(model: onnx.ModelProto) -> None:
    first, last = _node(model, "LayerNormalization"), model.graph.node[-1]
    first.input[0] = last.output[0]


def _nested(model: onnx.ModelProto, depth: int) -> None:
    """An If whose branches hold an If whose branches…"""
    output = helper.make_tensor_value_info("deep", TensorProto.FLOAT, None)
    inner = helper.make_node("Identity", ["pixels"], ["deep"])
    for level in range(depth):
        body = helper.make_graph([inner], f"level_{level}", [], [output])
        other = helper.make_graph([], f"other_{level}", [], [])
        inner = helper.make_node("If", ["condition"], ["deep"], then_branch=body, else_branch=other)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.insert(0, inner)


def _constant_outside(model: onnx.ModelProto) -> None:
    """A Constant node whose tensor lies in a file that is not there."""
    tensor = _tensor(model, "wo.0")
    _external(model, "nothing.bin")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["wo.0"], value=tensor))
    model.graph.initializer.remove(tensor)


def _sized(model: onnx.ModelProto, axis: int, size: int, *, output: bool = False) -> None:
    """State a size of the input, and of the output if asked."""
    for value in (model.graph.input[0], *([model.graph.output[0]] if output else [])):
        value.type.tensor_type.shape.dim[axis].dim_value = size


def _entry(model: onnx.ModelProto, key: str, text: str) -> None:
    _external(model, "weights.bin")
    entry = next(entry for entry in _tensor(model, "wo.0").external_data if entry.key == key)
    entry.value = text


def _attribute(model: onnx.ModelProto, op_type: str, name: str, value: object) -> None:
    _node(model, op_type).attribute[0].CopyFrom(helper.make_attribute(name, value))


_INVALID = "UnsupportedGraphError: the graph is not valid ONNX"
_UNREADABLE = "GraphFileError: '.*' is not a readable ONNX file"
_SIZE = r"has dims \(.*\), but a size is 0 to 2147483647: export it again"
_OUTSIDE = "GraphFileError: weight file '.*' of '.*' lies outside the folder"
CHANGES: dict[str, tuple[Change, str]] = {
    "opset 0": (lambda m: setattr(m.opset_import[0], "version", 0), "the graph has opset 0, but 13 or later"),
    "opset 999": (lambda m: setattr(m.opset_import[0], "version", 999), "the graph has opset 999, but"),
    "no opset": (lambda m: m.ClearField("opset_import"), "the graph has opset 0, but 13 or later is needed"),
    "no graph": (lambda m: m.ClearField("graph"), f"{_UNREADABLE} .it has no nodes"),
    "no nodes": (lambda m: m.graph.ClearField("node"), f"{_UNREADABLE} .it has no nodes"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "LocateError: there is no output"),
    "no inputs": (lambda m: m.graph.ClearField("input"), f"{_INVALID} .*'pixels'"),
    "cycle": (_cycle, f"{_INVALID} .*topologically sorted"),
    "output of no node": (lambda m: setattr(m.graph.output[0], "name", "nobody"), f"{_INVALID} .*'nobody'"),
    "same tensor twice": (
        lambda m: m.graph.node[1].output.__setitem__(0, m.graph.node[0].output[0]),
        f"{_UNREADABLE} .*redeclared",
    ),
    "same weight twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "pruned"),
    "no weight": (lambda m: m.graph.initializer.remove(_tensor(m, "wo.0")), f"{_INVALID} .*'wo.0'"),
    "node without inputs": (
        lambda m: _node(m, "Transpose").ClearField("input"),
        f"{_INVALID} .*has input size 0",
    ),
    "node without outputs": (
        lambda m: _node(m, "Transpose").ClearField("output"),
        f"{_INVALID} .*has output size 0",
    ),
    "perm out of range": (
        lambda m: _attribute(m, "Transpose", "perm", [7, 2, 1, 3]),
        "LocateError: no attention found",
    ),
    "axis is a string": (
        lambda m: _attribute(m, "Softmax", "axis", "last"),
        f"{_INVALID} .*Mismatched attribute type",
    ),
    "axis out of range": (
        lambda m: _attribute(m, "Softmax", "axis", 9),
        "LocateError: .*it normalises axis 9, not the last one",
    ),
    "2^80 elements": (lambda m: _huge(m, 2**40, 2**40), f"tensor 'wo.0' {_SIZE}"),
    "2^62 elements": (
        lambda m: _huge(m, 2**31 - 1, 2**31 - 1),
        "weight 'wo.0' has 1024 bytes, but its dims and dtype need 18446744056529682432: export it again",
    ),
    "2^40 elements, none there": (
        lambda m: (_huge(m, 2**40), _tensor(m, "wo.0").ClearField("raw_data")),
        f"tensor 'wo.0' {_SIZE}",
    ),
    "negative size": (lambda m: _huge(m, -16, 16), f"{_INVALID} .*Negative dimension"),
    "another size": (
        lambda m: _huge(m, 16, 17),
        "weight 'wo.0' has 1024 bytes, but its dims and dtype need 1088: export it again",
    ),
    "2^62 images": (lambda m: _sized(m, 0, 2**62, output=True), f"tensor 'pixels' {_SIZE}"),
    "2^40 patches": (lambda m: _sized(m, 1, 2**40), f"tensor 'pixels' {_SIZE}"),
    "no images": (lambda m: _sized(m, 0, 0), "has dims .*, but an encoder has at least one of each"),
    "weight file missing": (
        lambda m: _external(m, "nothing.bin"),
        "weight file '.*nothing.bin' .* is missing",
    ),
    "weight file is a folder": (
        lambda m: _external(m, "folder"),
        "weight file '.*folder' of '.*' is missing",
    ),
    "weights beyond the file": (
        lambda m: _external(m, "weights.bin", 2**40),
        "weight file '.*weights.bin' has 1024 bytes, but 'wo.0' of '.*' ends at 1099511628800",
    ),
    "offset below 0": (lambda m: _entry(m, "offset", "-64"), _UNREADABLE),
    "offset is no number": (lambda m: _entry(m, "offset", "first"), _UNREADABLE),
    "weights outside": (lambda m: _external(m, "../outside.bin"), _OUTSIDE),
    "weights outside by a detour": (lambda m: _external(m, "folder/../../outside.bin"), _OUTSIDE),
    "weights at an absolute path": (lambda m: _external(m, "/dev/zero"), _OUTSIDE),
    "constant in a missing file": (_constant_outside, f"{_INVALID} .*nothing.bin"),
    "30 graphs in each other": (lambda m: _nested(m, 30), "pruned"),
}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What became of the encoder after each change; of all at once, as starting a process takes longest."""
    outside = tmp_path_factory.mktemp("changed")
    (folder := outside / "model" / "folder").mkdir(parents=True)
    for weights in (folder.parent / "weights.bin", outside / "outside.bin"):
        weights.write_bytes(bytes(1024))
    contents = {}
    for number, (change, _) in enumerate(CHANGES.values()):
        model = build(Sketch(heads=4))
        change(model)
        contents[f"{number}.onnx"] = model.SerializeToString()
    outcomes = process(write(folder.parent, contents), outside / "log")
    return {name: outcomes[folder.parent / f"{number}.onnx"] for number, name in enumerate(CHANGES)}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_graphs(changed: dict[str, Outcome], name: str) -> None:
    outcome, expected = changed[name], CHANGES[name][1]
    if expected == "pruned":
        assert outcome.kind == "pruned", outcome
    else:
        assert outcome.kind == "refused", outcome
        assert re.search(expected, outcome.text), outcome.text


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    outcomes = process([tmp_path, tmp_path / "nothing.onnx"], tmp_path.parent / "log")
    for outcome in outcomes.values():
        assert re.match("GraphFileError: there is no file '.*': give the path of an ONNX", outcome.text)


def test_a_child_that_dies_or_hangs_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The net itself: a child that a signal ends, and one that never answers.
    ends = ("import os; os.abort()", PATIENCE, "ended with -6")
    hangs = ("input(); input()", 0.5, "more than")
    for code, patience, expected in (ends, hangs):
        monkeypatch.setattr(sys.modules[__name__], "PATIENCE", patience)
        command = [sys.executable, "-c", code]
        monkeypatch.setattr(sys.modules[__name__], "_command", lambda command=command: command)
        outcomes = process([tmp_path], tmp_path / "log")
        assert expected in failures(outcomes)[tmp_path.name]


if __name__ == "__main__":
    main()

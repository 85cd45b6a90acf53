"""A graph that also tells what runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from calib.errors import RunError
from runtime.backend import Array, View
from runtime.backends.onnxruntime import session_options, shapes_of
from runtime.errors import BackendError
from runtime.lazy import require

__all__ = ["ObservingSession"]

# Activations of one run that are alive together: those of all layers of a large tower would not fit.
_AT_ONCE = 48
_FOLDER = "session.model_external_initializers_file_folder_path"


class ObservingSession:
    """A `runtime.backend.Session` on ONNX Runtime's CPU provider that hands the values of some tensors to
    `seen`, some of them per run: a graph with many is run several times for one call."""

    def __init__(
        self,
        graph: Path,
        tensors: Sequence[str],
        seen: Callable[[Mapping[str, Array]], None],
        threads: int | None = None,
    ) -> None:
        """Open an ONNX file; `tensors` are float32 tensors of it, inputs among them.

        Raises:
            RunError: a tensor is not in the graph.
            BackendError: ONNX Runtime cannot open it.
        """
        model = ir.load(graph)
        values = {str(value.name): value for node in model.graph for value in node.outputs}
        self._fed = tuple(str(value.name) for value in model.graph.inputs if value.name in tensors)
        own = {str(value.name) for value in model.graph.outputs}
        for name in tensors:
            if name in self._fed or name in own:
                continue
            if name not in values:
                raise RunError(f"the graph {graph} has no tensor {name}: run with --fresh to plan it anew")
            values[name].type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(values[name])
        runtime = require("onnxruntime", "onnxruntime")
        options = session_options(runtime, threads)
        options.add_session_config_entry(_FOLDER, str(graph.resolve().parent))
        try:
            self._session: Any = runtime.InferenceSession(
                ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has a dozen classes with no common base
            raise BackendError(f"ONNX Runtime cannot open {graph} with its activations ({error})") from error
        self._own = tuple(name for name in (str(value.name) for value in model.graph.outputs) if name in own)
        self._known = tuple(name for name in tensors if name in own)
        observed = [name for name in tensors if name not in (*self._fed, *own)]
        self._parts = [observed[start : start + _AT_ONCE] for start in range(0, len(observed), _AT_ONCE)]
        self._seen = seen

    @property
    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """As of the graph."""
        found: Mapping[str, tuple[int | None, ...]] = shapes_of(self._session.get_inputs())
        return found

    @property
    def outputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """As of the graph, without what is observed."""
        found = shapes_of(self._session.get_outputs())
        return {name: shape for name, shape in found.items() if name in self._own}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's own outputs."""
        results = self._run(self._own, feeds)
        self._seen({name: feeds[name] for name in self._fed} | {name: results[name] for name in self._known})
        for part in self._parts:
            self._seen(self._run(part, feeds))
        return results

    def _run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, self._session.run(list(names), dict(feeds)), strict=True))

    def bind(self, *_: Mapping[str, View]) -> Any:
        """Not for bound runs.

        Raises:
            RunError: always.
        """
        raise RunError("activations are observed in plain runs only: call run")

"""Errors of the rewriter.

    GraphError
    ├── OptionError            an option has a value that cannot be meant, or does not fit the graph
    ├── GraphFileError         a model file is missing, damaged, or cannot be written where asked
    ├── UnsupportedGraphError  the graph lacks something every pass needs (a violated precondition)
    ├── LocateError            no attention layer could be found, or not the one asked for
    └── RewriteError           a pass left the graph in a state that it must not be in (a violated
    postcondition)

Each message is one sentence with the value got, the values allowed and the way out.
"""

from __future__ import annotations

from onnx_ir.passes import PostconditionError, PreconditionError

__all__ = [
    "GraphError",
    "GraphFileError",
    "LocateError",
    "OptionError",
    "RewriteError",
    "UnsupportedGraphError",
    "first_cause",
]


def first_cause(error: BaseException) -> str:
    """First line of what set off an error; tools that wrap errors say only what they were doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class GraphError(Exception):
    """Base of everything this package raises on purpose."""


class OptionError(GraphError, PreconditionError, ValueError):
    """An option has a value that cannot be meant, or that does not fit the graph."""


class GraphFileError(GraphError):
    """A model file is missing, damaged, or cannot be written where asked."""


class UnsupportedGraphError(GraphError, PreconditionError):
    """The graph lacks something that pruning needs."""


class LocateError(GraphError):
    """No attention layer could be found, or not the one asked for."""


class RewriteError(GraphError, PostconditionError):
    """A pass left the graph in a state that it must not be in: a defect here, or in the input graph."""

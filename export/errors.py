"""Everything `export` raises on purpose.

    ExportError
    ├── OptionError       an option has a value outside its range
    ├── CheckpointError   the checkpoint is missing, damaged, or of a kind that cannot be exported
    ├── TraceError        torch could not turn a module into an ONNX graph of the contract
    └── PromptError       the chat template cannot be written as a prompt template

What is about precisions and about places for bundles is of `calib.errors`, what is about graphs of
`fopru_graph.errors`, what is about the finished bundle of `runtime.errors`. Every message is one sentence
with the value got, the values allowed, and the way out.
"""

from __future__ import annotations

__all__ = ["CheckpointError", "ExportError", "OptionError", "PromptError", "TraceError"]


class ExportError(Exception):
    """Base of every error `export` raises on purpose."""


class OptionError(ExportError):
    """An option has a value outside its range, or options contradict each other."""


class CheckpointError(ExportError):
    """The checkpoint is missing, damaged, or of a kind that cannot be exported."""


class TraceError(ExportError):
    """torch could not turn a module into an ONNX graph of the contract."""


class PromptError(ExportError):
    """The chat template cannot be written as a prompt template, or the processor disagrees with it."""

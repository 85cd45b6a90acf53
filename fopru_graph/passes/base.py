"""A pass that hands on what it found: onnx-ir's `requires` → `call` → `ensures`, with typed findings."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Generic, TypeVar, cast

import onnx_ir as ir

__all__ = ["GraphPass", "Rewritten"]

Findings = TypeVar("Findings")


class Rewritten(ir.passes.PassResult, Generic[Findings]):
    """Result of a pass.

    Attributes:
        findings: what later passes and the report need.
        count: nodes added, changed or removed; `modified` is whether there were any.
    """

    def __init__(self, model: ir.Model, findings: Findings, count: int) -> None:
        super().__init__(model, modified=count > 0)
        self.findings = findings
        self.count = count


class GraphPass(ir.passes.InPlacePass, Generic[Findings]):
    """Base of the passes. Configuration and earlier findings come by the constructor and stay as they are."""

    name: ClassVar[str]

    @abstractmethod
    def call(self, model: ir.Model) -> Rewritten[Findings]:
        """Do the work of the pass on a model that `requires` has accepted."""

    def run(self, model: ir.Model) -> Rewritten[Findings]:
        """Apply the pass: `requires`, `call`, `ensures`."""
        return cast("Rewritten[Findings]", self(model))

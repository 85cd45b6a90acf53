"""TensorRT engines of a bundle: planned anywhere, built on the device that they will run on.

`plan` says which shapes engines are built for, `memory` whether they fit, `builder` builds them, `engines`
finds them again. Nothing imports TensorRT before it is needed: a plan can be made on any machine.
"""

from __future__ import annotations

__all__: list[str] = []

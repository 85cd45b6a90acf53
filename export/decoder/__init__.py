"""One trace of a language model, two graphs.

`trace.py` exports the model with every attention as one node `CachedAttention`; `shared.py` and `append.py`
put real operators in its place, one file for each kind of key/value cache (`runtime.contract.CACHES`). Both
graphs read the same weight file.
"""

from __future__ import annotations

__all__: list[str] = []

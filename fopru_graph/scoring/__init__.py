"""How attention becomes one number per column: one file per path.

`choice.py` decides, `tap.py` takes probabilities that the graph has, `side_branch.py` computes them again in
float32, `chunked.py` does so a block of queries at a time, `cls_sum.py` adds up layers. The score pass calls
these and cuts out the columns of the tokens.
"""

from __future__ import annotations

from fopru_graph.scoring.choice import Choice, choose
from fopru_graph.scoring.chunked import chunked_means
from fopru_graph.scoring.cls_sum import summed_cores
from fopru_graph.scoring.rows import QueryRange, SlicedRows, query_range
from fopru_graph.scoring.side_branch import Site, probabilities
from fopru_graph.scoring.tap import tapped

__all__ = [
    "Choice",
    "QueryRange",
    "Site",
    "SlicedRows",
    "choose",
    "chunked_means",
    "probabilities",
    "query_range",
    "summed_cores",
    "tapped",
]

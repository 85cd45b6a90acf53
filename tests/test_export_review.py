"""Wrong answers that a second reader found."""

from __future__ import annotations

import numpy as np
import pytest

from tests.test_fopru_graph_merging import pruned, stated
from tests.toy_mergers import Toy, feeds


def test_a_grid_of_half_the_tokens_is_no_second_image() -> None:
    toy = Toy("packed", 2, (3, 4), blocks="wf")
    session, _ = pruned(toy, stated(toy, strategy="row", grid="input"))
    given = {**feeds(toy), "num_keep": np.array([4])}
    assert session(given, 4, grid=np.array([3, 4]))["kept_indices"].shape == (1, 4)
    with pytest.raises(Exception, match=r"node_grid_scores"):
        session(given, 4, grid=np.array([3, 2]))

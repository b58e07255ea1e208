"""Several processes that share the rows of a trace make the graph that one makes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from test_invariance import CASES

from circuit_tracer.attribution.attribute import attribute
from tests.support import rank_traces
from tests.support.process_cases import results, together
from tests.support.tracing_cases import IDS, build

OPTIONS = [{}, {"max_feature_nodes": 13}, {"max_feature_nodes": 40, "batch_size": 3}, {"keep_edge_mass": 0.7}]


@pytest.mark.slow("processes that load torch: 7 s and more")
@pytest.mark.parametrize("world", [2, 3])
def test_the_graph_is_that_of_one_process(world: int, tmp_path: Path) -> None:
    every = [(i + j, case, how) for (i, case), (j, how) in product(enumerate(CASES), enumerate(OPTIONS))]
    share = [(case, how) for turn, case, how in every if turn % 2 == world % 2]  # the others with the other number
    of_ranks = results(together(world, rank_traces.traces, share, folder=tmp_path, limit=200))
    for number, (case, options) in enumerate(share):
        expected = rank_traces.plain(attribute(IDS, build(case), **options))
        for rank in range(world):
            found = of_ranks[rank][number]
            assert found.pop("processes") == world
            assert found.pop("residual") <= 1e-10
            for name, values in found.items():
                same = np.testing.assert_array_equal if values.dtype.kind == "i" else np.testing.assert_allclose
                tolerance = {} if values.dtype.kind == "i" else {"rtol": 1e-9, "atol": 1e-12}
                same(values, expected[name], err_msg=f"{case} {options} {name} of rank {rank}", **tolerance)


@pytest.mark.slow("takes 6.7 s")
def test_when_one_process_has_too_little_memory_none_goes_on(tmp_path: Path) -> None:
    said = results(together(2, rank_traces.refused, CASES[0], folder=tmp_path, limit=200))
    assert said[0] == "ResourceError: another process has too little memory for its share of this trace"
    assert "give it more memory" in said[1]

"""A graph that fixes indices per bag is given to another engine in those bags, and in no others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_surgery import EXPORTS
from models import assert_close, build_plain, numpy_predictions

from dlrm_tvm.data.workload import bag_lengths, random_bags
from dlrm_tvm.engines.executor import EngineExecutor
from dlrm_tvm.engines.graph import engine_graph
from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.runtime.artifact import open_artifact

PATH, BATCH = EXPORTS / "op13_cross_multihot.onnx", 6
CORES = sorted(os.sched_getaffinity(0))[:1]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    pytest.importorskip("onnxruntime")
    return build_plain(read_dlrm(PATH), BATCH, tmp_path_factory.mktemp("bags"))


def graph_of(library: Path, **options: object):
    return engine_graph("onnxruntime", PATH, open_artifact(library).manifest, str(library), **options)


def test_the_engine_computes_the_same_bags_as_the_library(library: Path) -> None:
    graph, model = graph_of(library, indices_per_bag=8 / 3), read_dlrm(PATH)
    assert graph.fixes_bags
    assert [feed.shape for feed in graph.feeds if feed.role == "indices"] == [(6, 3), (6, 1), (6, 4)]
    card = open_artifact(library).manifest.model
    dense, bags = random_bags(card, BATCH, bag_lengths(card), instance=0)
    engine = EngineExecutor(graph, str(library), CORES)
    found = engine.run(engine.prepare(dense, bags.indices, bags.offsets))
    assert_close(found, numpy_predictions(model, dense, bags.indices, bags.offsets))
    others = [np.arange(BATCH) * 2] * 3
    with pytest.raises(UserError, match="takes 3 indices per bag of table 0; the inputs are other bags"):
        engine.prepare(dense, [np.zeros(12, int)] * 3, others)


def test_other_numbers_and_int8_are_refused_in_one_line(library: Path) -> None:
    with pytest.raises(UserError, match="takes indices per bag as the graph fixes them"):
        graph_of(library, indices_per_bag=1)
    with pytest.raises(UserError, match="Give --engine-precision fp32"):
        graph_of(library, precision="int8")


def test_feeds_of_other_batch_sizes_keep_the_number_of_indices(library: Path) -> None:
    graph = graph_of(library)
    shapes = [feed.resized(9).shape for feed in graph.feeds]
    assert shapes == [(9, 5), (9, 3), (9, 1), (9, 4)]
    last = replace(graph.feeds[0], role="offsets", shape=(3, 7), last_offset=True)
    assert last.resized(9).shape == (3, 10)
    assert last.array(np.zeros((6, 5)), np.zeros((6, 3), int)).tolist() == [list(range(7))] * 3

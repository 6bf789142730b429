"""ONNX Runtime by its fastest call: inputs and output are bound before the clock runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from .interface import EngineGraph, OpenEngine


def open_onnxruntime(graph: EngineGraph, threads: int, cores: Sequence[int]) -> OpenEngine:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # fatal messages only; errors arrive as exceptions
    if threads > 1:  # without the calling thread, which our placement puts on the first core; cores count from 1
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in cores[1:])
        )
    for name, size in graph.sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    session = ort.InferenceSession(_model(graph, options), options, providers=["CPUExecutionProvider"])
    (target,) = session.get_outputs()
    shape = (graph.batch_size, 1)[: len(target.shape)]
    output = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))

    def prepare(dense: np.ndarray, indices: np.ndarray) -> Any:
        values = [ort.OrtValue.ortvalue_from_numpy(feed.array(dense, indices)) for feed in graph.feeds]
        binding = session.io_binding()
        for feed, value in zip(graph.feeds, values):
            binding.bind_ortvalue_input(feed.name, value)
        binding.bind_ortvalue_output(target.name, output)
        return binding, values

    def run(bound: Any) -> None:
        session.run_with_iobinding(bound[0])

    return OpenEngine(prepare, run, lambda: output.numpy().reshape(-1))


def _model(graph: EngineGraph, options: ort.SessionOptions) -> str | bytes:
    """The file's path; for int8 the file's content, as its tables lie beside the original file."""
    if graph.quantized is None:
        return graph.path
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.path.dirname(graph.path)
    )
    with open(graph.quantized, "rb") as file:
        return file.read()

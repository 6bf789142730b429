"""The engines under comparison, each on one thread at fp32, with the fastest call it offers.

All take the demo model: ours compiled for the batch size, the others the ONNX file with that batch size fixed. Inputs
are bound before the clock runs, outputs stay in memory of the engine's own. An engine is imported where it is opened,
so that a process holds one of them only; ImportError means that it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

DENSE, INDICES, PRED, BATCH = "dense_x", "indices", "pred", "batch"  # names in the demo graph (demo_graph.py)


@dataclass(frozen=True)
class Engine:
    """One engine opened for one batch size.

    prepare(dense [batch, 13] float32, indices [batch, 26] int64) -> a bound input, to be run any number of times.
    run(bound) is what is timed; predictions() copies out what the last run left, [batch] float32.
    """

    prepare: Callable[[np.ndarray, np.ndarray], Any]
    run: Callable[[Any], Any]
    predictions: Callable[[], np.ndarray]


def open_ours(library: str, batch: int, core: int) -> Engine:
    from dlrm_tvm.artifact import open_artifact
    from dlrm_tvm.executor import Executor

    executor = Executor(open_artifact(library), threads=1, cores=[core])
    last = [np.empty(0, np.float32)]

    def run(bound: Any) -> None:
        last[0] = executor.run(bound)  # valid until the next run

    return Engine(executor.prepare, run, lambda: last[0].copy())


def open_onnxruntime(model: str, batch: int, core: int) -> Engine:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name(BATCH, batch)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    output = ort.OrtValue.ortvalue_from_numpy(np.zeros((batch, 1), np.float32))

    def prepare(dense: np.ndarray, indices: np.ndarray) -> Any:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in (dense, _by_table(indices))]
        binding = session.io_binding()
        for name, value in zip((DENSE, INDICES), values):
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(PRED, output)
        return binding, values

    def run(bound: Any) -> None:
        session.run_with_iobinding(bound[0])

    return Engine(prepare, run, lambda: output.numpy()[:, 0].copy())


def open_openvino(model: str, batch: int, core: int) -> Engine:
    import openvino as ov

    runtime = ov.Core()
    graph = runtime.read_model(model)
    graph.reshape({DENSE: [batch, -1], INDICES: [-1, batch]})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # the default on a CPU with AVX512-BF16 would be bfloat16
    }
    request = runtime.compile_model(graph, "CPU", settings).create_infer_request()
    output = np.zeros((batch, 1), np.float32)
    request.set_output_tensor(ov.Tensor(output, shared_memory=True))

    def prepare(dense: np.ndarray, indices: np.ndarray) -> Any:
        return ov.Tensor(np.ascontiguousarray(dense)), ov.Tensor(_by_table(indices))

    def run(bound: Any) -> None:
        request.set_tensor(DENSE, bound[0])
        request.set_tensor(INDICES, bound[1])
        request.start_async()  # infer() builds a dictionary of copied outputs
        request.wait()

    return Engine(prepare, run, lambda: output[:, 0].copy())


def engine_version(name: str) -> str:
    """Of the package that the engine comes in. Raises ImportError when it is not installed."""
    from importlib import import_module, metadata

    package = {"ours": "apache-tvm"}.get(name, name)
    if name != "ours":
        import_module(name)
    return metadata.version(package)


OPEN = {"ours": open_ours, "onnxruntime": open_onnxruntime, "openvino": open_openvino}


def _by_table(indices: np.ndarray) -> np.ndarray:
    """[batch, 26] -> [26, batch], as the graph takes them, in memory of its own."""
    return np.ascontiguousarray(indices.T)

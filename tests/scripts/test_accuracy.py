"""accuracy.py: what passes, fails and is printed, first with the NumPy reference in the library's place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import read_result, run

import accuracy
from dlrm_tvm.data import chunks, demo
from dlrm_tvm.data.demo_weights import CRITEO_TABLE_ROWS
from dlrm_tvm.errors import UserError
from dlrm_tvm.model import reference

KEYS = [
    "schema_version", "items", "max_abs_error", "mean_abs_error", "max_logit_error", "mean_logit_error", "mismatches",
    "auc", "reference_auc", "auc_ratio", "min_auc_ratio", "log_loss", "passed", "interrupted",
]  # fmt: skip


class FakeLibrary:
    """The demo model computed by the NumPy reference, `change` applied to its predictions, marked as `precision`."""

    def __init__(self, change=lambda predictions: predictions, precision: str = "fp32") -> None:
        self._model = demo.demo_dlrm()
        self._change = change
        card = SimpleNamespace(
            name=self._model.name,
            num_dense=13,
            table_rows=tuple(table.num_rows for table in self._model.tables),
            table_names=tuple(table.name for table in self._model.tables),
            fingerprint=self._model.fingerprint,
            graph_inputs=self._model.graph_inputs,
            gives_logits=False,
        )
        self.artifact = SimpleNamespace(manifest=SimpleNamespace(model=card, precision=precision, batch_size=100))

    def __call__(self, dense: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return self._change(reference.predict(self._model, dense, indices)).astype(np.float32)


def run_main(monkeypatch, capsys, *arguments: str, library: FakeLibrary) -> tuple[int, str, dict]:
    """Exit status, what it printed, and its JSON line."""
    monkeypatch.setattr(accuracy, "load", lambda path: library)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *arguments])
    status = accuracy.main()
    printed = capsys.readouterr().out
    return status, printed, read_result(printed)


def save_criteo(path: Path, count: int) -> Path:
    """Criteo records of items that the demo model takes, labels alternating."""
    rng = np.random.default_rng(1)
    rows = [min(rows, demo.DEMO_TABLE_ROWS) for rows in CRITEO_TABLE_ROWS]
    labels = np.arange(count) % 2
    records = np.hstack([labels[:, None], rng.integers(0, 99, (count, 13)), rng.integers(0, rows, (count, 26))])
    records.astype("<i4").tofile(path)
    return path


def save_graph_inputs(path: Path, count: int) -> Path:
    """Items by the graph's own input names, with the reference's outputs: no labels."""
    model = demo.demo_dlrm()
    dense, indices = demo.demo_inputs(count, seed=5)
    np.savez(path, dense_x=dense, indices=indices.T, pred=reference.predict(model, dense, indices))
    return path


def noisy(predictions: np.ndarray) -> np.ndarray:
    """Errors of 1e-4 and more, as of bf16, that hardly change the order."""
    return predictions + 3e-4 * np.random.default_rng(4).standard_normal(len(predictions))


def shuffled_tenth(predictions: np.ndarray) -> np.ndarray:
    """One in ten items has another one's prediction."""
    return np.concatenate([np.roll(predictions[: len(predictions) // 10], 1), predictions[len(predictions) // 10 :]])


def test_a_correct_library_passes_and_ranks_as_the_reference(monkeypatch, capsys):
    status, printed, result = run_main(monkeypatch, capsys, "--max-items", "450", library=FakeLibrary())
    assert (status, result["passed"], result["items"], result["mismatches"]) == (0, True, 450, 0)
    assert list(result) == KEYS
    assert 0 < result["mean_abs_error"] < result["max_abs_error"] < 2e-6
    assert result["auc_ratio"] == pytest.approx(1, abs=1e-4)
    assert result["auc"] == pytest.approx(0.8, abs=0.05)
    assert "PASS" in printed.splitlines()


def test_errors_beyond_the_tolerance_fail_and_are_counted(monkeypatch, capsys):
    def change(predictions):
        predictions[:7] += 1e-3
        return predictions

    arguments = ("--max-items", "100")
    status, printed, result = run_main(monkeypatch, capsys, *arguments, library=FakeLibrary(change))
    assert (status, result["passed"], result["mismatches"]) == (3, False, 7)
    assert result["max_abs_error"] == pytest.approx(1e-3, abs=2e-6)
    assert "FAIL" in printed.splitlines()
    arguments = ("--max-items", "100", "--atol", "2e-3", "--rtol", "0")
    status, _, result = run_main(monkeypatch, capsys, *arguments, library=FakeLibrary(change))
    assert (status, result["mismatches"]) == (0, 0)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_quantized_library_passes_on_its_auc_ratio_with_errors_beyond_the_tolerance(monkeypatch, capsys, precision):
    library = FakeLibrary(noisy, precision)
    status, printed, result = run_main(monkeypatch, capsys, "--max-items", "2000", library=library)
    assert (status, result["passed"], result["min_auc_ratio"]) == (0, True, 0.999)
    assert result["mismatches"] > 1500
    assert 0.999 < result["auc_ratio"] != 1
    assert result["max_logit_error"] > result["mean_logit_error"] > result["mean_abs_error"]
    assert f"none outside tolerance?       not judged, {precision}: the AUC ratio is, in its place" in printed
    assert "AUC ratio at least 0.999?     yes" in printed.splitlines()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_auc_ratio_below_the_minimum_fails_in_every_precision(monkeypatch, capsys, precision):
    library = FakeLibrary(shuffled_tenth, precision)
    arguments = ("--max-items", "2000", "--rtol", "1", "--atol", "1")
    status, printed, result = run_main(monkeypatch, capsys, *arguments, library=library)
    assert (status, result["passed"], result["mismatches"]) == (3, False, 0)
    assert 0.8 < result["auc_ratio"] < 0.999
    assert {"AUC ratio at least 0.999?     NO", "FAIL"} <= set(printed.splitlines())
    status, _, result = run_main(monkeypatch, capsys, *arguments, "--min-auc-ratio", "0.8", library=library)
    assert (status, result["passed"], result["min_auc_ratio"]) == (0, True, 0.8)


def test_a_quantized_library_without_labels_says_what_was_judged(monkeypatch, capsys, tmp_path):
    arguments = ("--ref-data", str(save_graph_inputs(tmp_path / "inputs.npz", 120)))
    library = FakeLibrary(noisy, "bf16")
    status, printed, result = run_main(monkeypatch, capsys, *arguments, library=library)
    assert (status, result["auc_ratio"]) == (0, None)
    assert result["mismatches"] > 100
    assert printed.splitlines()[-5:-1] == [
        "every prediction finite?      yes",
        "none outside tolerance?       not judged, bf16, and neither --rtol nor --atol was given",
        "AUC ratio at least 0.999?     not judged, the data has no labels",
        "PASS",
    ]
    status, printed, _ = run_main(monkeypatch, capsys, *arguments, "--atol", "1e-5", library=library)
    assert status == 3
    assert "none outside tolerance?       NO" in printed.splitlines()
    assert run_main(monkeypatch, capsys, *arguments, "--atol", "1e-2", library=library)[0] == 0


def test_a_minimum_ratio_of_zero_is_refused(monkeypatch, capsys):
    with pytest.raises(UserError, match=r"--min-auc-ratio 0\.0: more than 0 and at most 1 was wanted"):
        run_main(monkeypatch, capsys, "--min-auc-ratio", "0", library=FakeLibrary())


def test_without_reference_outputs_finite_predictions_pass(monkeypatch, capsys, tmp_path):
    path = save_criteo(tmp_path / "terabyte_processed_test.bin", 130)
    status, _, result = run_main(monkeypatch, capsys, "--ref-data", str(path), library=FakeLibrary())
    assert (status, result["passed"], result["items"]) == (0, True, 130)
    absent = ("max_abs_error", "max_logit_error", "mean_logit_error", "mismatches", "reference_auc", "auc_ratio")
    assert [result[key] for key in absent] == [None] * 6
    assert 0 < result["auc"] < 1
    assert result["log_loss"] > 0


def test_the_split_of_a_day_is_printed_and_chosen(monkeypatch, capsys, tmp_path):
    """Items of the first half are clicked and the others not; the model's own AUC cannot tell, the log loss can."""
    rng, count = np.random.default_rng(3), 101
    rows = [min(rows, demo.DEMO_TABLE_ROWS) for rows in CRITEO_TABLE_ROWS]
    arrays = {"X_int": rng.integers(0, 99, (count, 13)), "X_cat": rng.integers(0, rows, (count, 26))}
    path = tmp_path / "day_23_reordered.npz"
    np.savez(path, **{key: each.astype(np.float64) for key, each in arrays.items()}, y=np.arange(count) < 51.0)
    losses = {}
    for arguments, first, last in (
        ((), 0, 50),
        (("--split", "test"), 0, 50),
        (("--split", "val"), 51, 100),
        (("--split", "all"), 0, 100),
        (("--split", "val", "--first-item", "10", "--max-items", "30"), 61, 90),
    ):
        library = FakeLibrary(lambda predictions: 0.9 + 0 * predictions)
        _, printed, result = run_main(monkeypatch, capsys, "--ref-data", str(path), *arguments, library=library)
        name = arguments[1] if arguments else "test"
        note = "(day 23 of Criteo's logs has 178,274,637; cut as that is)"
        assert f"split {name}, items {first} to {last} of 101 {note}; others by --split" in " ".join(printed.split())
        assert result["items"] == last - first + 1
        losses[last] = result["log_loss"]
    assert losses[50] == pytest.approx(-np.log(0.9)) and losses[100] == pytest.approx(
        -(51 * np.log(0.9) + 50 * np.log(0.1)) / 101
    )
    assert losses[90] == pytest.approx(-np.log(0.1))


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_prediction_that_is_not_finite_fails_and_the_json_stays_valid(monkeypatch, capsys, tmp_path, with_reference):
    def change(predictions):
        predictions[3] = np.nan
        return predictions

    path = demo.DEMO_REFERENCE if with_reference else save_criteo(tmp_path / "data.bin", 50)
    arguments = ("--ref-data", str(path), "--max-items", "50")
    status, printed, result = run_main(monkeypatch, capsys, *arguments, library=FakeLibrary(change))
    assert (status, result["passed"], result["auc"], result["log_loss"]) == (3, False, None, None)
    assert result["mismatches"] == (1 if with_reference else None)
    assert "NaN" not in printed.splitlines()[-1]
    assert any(line.startswith("not finite") for line in printed.splitlines())


def test_data_of_another_model_is_refused(monkeypatch, capsys):
    library = FakeLibrary()
    library.artifact.manifest.model.fingerprint = "0" * 64
    with pytest.raises(UserError, match="recorded for another model"):
        run_main(monkeypatch, capsys, library=library)


def test_damaged_inputs_of_the_graph_are_one_line(monkeypatch, capsys, tmp_path):
    library = FakeLibrary()
    names = library.artifact.manifest.model.graph_inputs
    rng = np.random.default_rng(2)
    columns = np.zeros((26, 40), np.int64)
    indices = {names.indices[0]: columns} if len(names.indices) == 1 else dict(zip(names.indices, columns))
    dense = rng.random((40, 13), dtype=np.float32)
    path = tmp_path / "bad.npz"
    np.savez(path, **{names.dense: dense}, **indices, pred=np.zeros(40, np.float32))
    path.write_bytes(path.read_bytes().replace(dense.tobytes(), bytes(dense.nbytes)))
    with pytest.raises(UserError, match=r"bad\.npz: damaged.*Bad CRC"):
        run_main(monkeypatch, capsys, "--ref-data", str(path), library=library)


def run_script(*arguments: str | Path):
    return run(*arguments, script="accuracy")


def test_missing_reference_data_is_one_line_and_status_1():
    finished = run_script("--ref-data", "nowhere.npz", "--quiet")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == "nowhere.npz: no such file. Give reference data with --ref-data FILE.\n"


def test_a_missing_library_is_one_line_and_status_1():
    pytest.importorskip("dlrm_tvm.runtime.artifact")
    finished = run_script("--model", "nowhere.so", "--quiet")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("nowhere")
    assert finished.stderr.count("\n") == 1


def test_compiled_demo_library_passes_on_the_shipped_data(demo_library):
    finished = run_script("--model", demo_library)
    assert finished.returncode == 0, finished.stderr
    result = read_result(finished.stdout)
    assert (result["items"], result["mismatches"], result["passed"]) == (32768, 0, True)
    assert result["auc_ratio"] == pytest.approx(1, abs=1e-6)


def test_compiled_demo_library_scores_any_number_of_items(demo_library, tmp_path):
    for count in (1, 101):
        result = read_result(run_script("--model", demo_library, "--max-items", str(count)).stdout)
        assert (result["items"], result["passed"]) == (count, True)
    path = save_criteo(tmp_path / "day.bin", 333)
    result = read_result(run_script("--model", demo_library, "--ref-data", path).stdout)
    assert (result["items"], result["passed"], result["reference_auc"]) == (333, True, None)


def test_compiled_demo_library_scores_the_validation_half_of_mlperf_v2s_files(demo_library, tmp_path):
    rng, count = np.random.default_rng(6), 301
    hots = rng.integers(1, 5, 26)
    dense, labels = rng.random((count, 13), np.float32) * 5, (rng.random((count, 1)) < 0.4).astype(np.int32)
    rows = [min(rows, demo.DEMO_TABLE_ROWS) for rows in CRITEO_TABLE_ROWS]
    indices = [rng.integers(0, most, (count, hot), np.int32) for most, hot in zip(rows, hots)]
    np.save(tmp_path / "day_23_dense.npy", dense)
    np.save(tmp_path / "day_23_labels.npy", labels)
    np.savez(tmp_path / "day_23_sparse_multi_hot.npz", **{str(table): each for table, each in enumerate(indices)})
    finished = run_script("--model", demo_library, "--ref-data", tmp_path)
    assert finished.returncode == 0, finished.stderr
    result, half = read_result(finished.stdout), slice(0, 151)
    flat, offsets = [each[half].reshape(-1) for each in indices], [np.arange(151) * hot for hot in hots]
    p = reference.predict(demo.demo_dlrm(), dense[half], flat, offsets)
    p = np.where(labels[half, 0] == 1, p, 1 - p)
    assert (result["items"], result["log_loss"]) == (151, pytest.approx(-np.log(p).mean(), abs=1e-6))


def test_compiled_demo_library_names_an_index_outside_a_table(demo_library, tmp_path):
    path = save_criteo(tmp_path / "day.bin", 200)
    records = np.memmap(path, "<i4", "r+", shape=(200, 40))
    records[150, 14 + 5] = 3
    records.flush()
    finished = run_script("--model", demo_library, "--ref-data", path, "--quiet")
    assert finished.returncode == 1
    assert "item 150 takes row 3 of table 5" in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_ctrl_c_scores_what_there_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 40)
    path, calls = save_criteo(tmp_path / "terabyte_processed_test.bin", 100), []

    def change(predictions):
        calls.append(len(predictions))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predictions

    status, printed, result = run_main(monkeypatch, capsys, "--ref-data", str(path), library=FakeLibrary(change))
    assert (status, result["items"], result["passed"], result["interrupted"]) == (130, calls[0], None, True)
    assert f"INTERRUPTED: {100 - calls[0]} items were not scored" in printed.splitlines()
    with pytest.raises(KeyboardInterrupt):
        calls.append(0)
        del calls[1:]
        run_main(monkeypatch, capsys, "--ref-data", str(path), library=FakeLibrary(change))

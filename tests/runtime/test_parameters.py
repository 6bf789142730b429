"""The parameter file: where each parameter lies in it, and that it is written whole."""

from __future__ import annotations

import json

import numpy as np

from dlrm_tvm.runtime.manifest import Parameter
from dlrm_tvm.runtime.parameters import HUGE_PAGE, ParameterSource, array_source, lay_out, write_parameters


def test_large_parameters_and_tables_begin_on_huge_pages_and_small_ones_on_cache_lines():
    def source(name: str, size: int) -> ParameterSource:
        return ParameterSource(name, "float32", (size,), lambda first: iter(()))

    sources = [source("small", 3), source("large", HUGE_PAGE // 4), source("odd", 5), source("last", HUGE_PAGE)]
    entries, size = lay_out(sources)
    assert [entry.offset for entry in entries] == [4096, HUGE_PAGE, 2 * HUGE_PAGE, 3 * HUGE_PAGE]
    assert size == 3 * HUGE_PAGE + 4 * HUGE_PAGE
    entries, _ = lay_out([sources[0], sources[2]])
    assert [entry.offset for entry in entries] == [4096, 4096 + 64]
    entries, _ = lay_out([source("tables", 16), sources[0]])
    assert [entry.offset for entry in entries] == [HUGE_PAGE, HUGE_PAGE + 64]


def test_parameters_of_several_chunks_are_written_whole_and_counted(tmp_path):
    rng = np.random.default_rng(0)
    chunks = [rng.random((rows, 32), np.float32) for rows in (1, 70_000, 33)]
    numbers = rng.integers(0, 9, (2, 300_000))
    sources = [
        ParameterSource("tables", "float32", (70_034 * 32,), lambda first: iter(chunks)),
        array_source("numbers", numbers[::-1][::-1]),
    ]
    entries, size = lay_out(sources)
    counted = []
    digest = write_parameters(tmp_path / "p", "build", sources, entries, counted.append)
    content = (tmp_path / "p").read_bytes()
    assert (len(content), len(digest)) == (size, 64)
    assert sum(counted) == sum(source.nbytes for source in sources)
    assert json.loads(content[:4096].rstrip(b"\0"))["build"] == "build"
    tables = np.frombuffer(content, np.float32, 70_034 * 32, entries[0].offset)
    np.testing.assert_array_equal(tables.reshape(-1, 32), np.concatenate(chunks))
    np.testing.assert_array_equal(
        np.frombuffer(content, np.int64, numbers.size, entries[1].offset), numbers.reshape(-1)
    )


def test_size_of_a_parameter_beyond_four_gibibytes_does_not_overflow():
    entry = Parameter("tables", "float32", (39_979_771 * 128,), 4096)
    assert entry.nbytes == 39_979_771 * 128 * 4 > 1 << 34

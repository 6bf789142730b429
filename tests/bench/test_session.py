"""The plan of a run: cores left to the caller, and all that is known before anything is started."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from scripts import CORES
from sysfs_trees import two_socket_tree

from dlrm_tvm.bench import session
from dlrm_tvm.bench.session import Placement, RunSettings, plan_run
from dlrm_tvm.errors import UserError
from dlrm_tvm.machine.topology import Topology, read_topology


@pytest.fixture
def machine(tmp_path: Path) -> Topology:
    """Cores 0 to 63, whose second hardware threads are 64 to 127; four of them usable."""
    return read_topology(two_socket_tree(tmp_path), affinity=[0, 1, 2, 3, 64, 65, 66, 67])


def test_the_caller_gets_the_spare_core_or_free_ones_or_shares_all(machine: Topology) -> None:
    spare = Placement(machine, ((1,), (2,)), frozenset({0, 64}))
    assert spare.other_cpus == (0, 64)
    free = Placement(machine, ((0,), (1,)), frozenset())
    assert free.other_cpus == (2, 3, 66, 67)  # the second threads of 0 and 1 belong to cores that are taken
    full = Placement(machine, ((0, 1), (2, 3)), frozenset())
    assert full.other_cpus == (0, 1, 2, 3, 64, 65, 66, 67)


def test_a_plan_holds_all_decisions_and_cannot_be_changed(demo_library: Path) -> None:
    plan = plan_run(RunSettings(demo_library, instances=1, cores=str(CORES[0]), indices_per_bag=(3,)))
    assert (plan.cores, plan.indices_per_bag, plan.other_engine) == (((CORES[0],),), 3, None)
    assert plan.manifest.model.num_tables == 26
    assert plan.memory.instance_nodes and plan.environment["command"]
    assert plan.busiest[0] == CORES[0] and 0 <= plan.busiest[1] <= 1
    with pytest.raises(FrozenInstanceError):
        plan.indices_per_bag = 1


def test_what_is_refused_is_refused_before_the_machine_is_looked_at(
    demo_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("describe_environment", "busiest_core"):
        monkeypatch.setattr(session, name, lambda *_: pytest.fail("too late"))
    for settings, message in (
        (RunSettings(tmp_path / "none.so"), "no such file"),
        (RunSettings(demo_library, profile=True), "has no time stamps in it"),
        (RunSettings(demo_library, engine="onnxruntime", onnx_model=tmp_path / "none.onnx"), "none.onnx"),
    ):
        with pytest.raises((UserError, OSError), match=message):
            plan_run(settings)

"""CPU flags: read from pasted /proc/cpuinfo, required by libraries, refused in one line where they lack."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from dlrm_tvm.errors import UserError
from dlrm_tvm.machine.cpu import FLAG_OF_FEATURE, check_host_runs, clock_mhz, host_flags, host_model, required_flags

XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu vme pni ssse3 fma avx f16c avx2 avx512f avx512_vnni avx512_bf16 amx_tile
vmx flags\t: vnmi preemption_timer
bugs\t\t: spectre_v1

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\n"


@pytest.fixture
def cpuinfo(tmp_path):
    def write(text: str):
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        return path

    return write


def test_flags_and_name_are_those_of_the_first_processor(cpuinfo):
    flags = host_flags(cpuinfo(XEON))
    assert {"fpu", "pni", "avx512_vnni", "amx_tile"} <= flags
    assert len(flags) == 12
    assert host_model(cpuinfo(XEON)) == "Intel(R) Xeon(R) Platinum 8480+"


def test_another_architecture_has_no_flags_and_no_name(cpuinfo):
    assert host_flags(cpuinfo(ARM)) == frozenset()
    assert host_model(cpuinfo(ARM)) == "unknown"


def test_required_flags_are_cpuinfo_names_in_order_and_tuning_features_need_none():
    features = ["sse3", "avx512vnni", "avx512bf16", "fast-gather", "prefer-256-bit", "64bit", "amx-int8", "lzcnt"]
    assert required_flags(features) == ("abm", "amx_int8", "avx512_bf16", "avx512_vnni", "pni")


def test_instructions_that_no_generated_code_holds_need_no_flag_as_hosts_hide_them():
    """rdseed was hidden on a Zen 5: a library for Zen 4 runs there all the same."""
    assert required_flags(["rdseed", "rdrnd", "fsgsbase", "movdiri", "movdir64b", "avx2"]) == ("avx2",)


def test_a_flag_that_several_features_share_is_named_once():
    assert FLAG_OF_FEATURE["egpr"] == FLAG_OF_FEATURE["ndd"]
    assert required_flags(["egpr", "ndd", "avx"]) == ("apx", "avx")


def test_a_cpu_that_has_every_needed_flag_may_run_the_library():
    check_host_runs("m.so", ("avx2", "fma"), frozenset({"fma", "avx2", "sse"}))
    check_host_runs("m.so", (), frozenset())


def test_missing_flags_are_all_named_in_one_line():
    with pytest.raises(UserError) as error:
        check_host_runs("m.so", ("fma", "avx512_vnni", "amx_tile"), frozenset({"fma"}))
    assert str(error.value) == (
        "m.so needs amx_tile, avx512_vnni, which this CPU lacks. "
        "Compile it on this machine, or with --target-cpu set to this machine's CPU."
    )


def clocks(monkeypatch, mhz: list[float] | None, online: list[int]) -> None:
    """Of a machine with these cpus, as psutil and sysfs tell."""

    def cpu_freq(percpu: bool) -> list[SimpleNamespace]:
        if mhz is None:
            raise NotImplementedError("can't find current frequency file")
        return [SimpleNamespace(current=each) for each in mhz]

    monkeypatch.setattr(psutil, "cpu_freq", cpu_freq)
    monkeypatch.setattr("dlrm_tvm.machine.cpu.online_cpus", lambda: online)


def test_clock_is_the_mean_of_the_cpus_asked_for(monkeypatch):
    clocks(monkeypatch, [3700.0, 3500.0, 800.0], online=[0, 1, 3])
    assert clock_mhz([0, 1]) == 3600
    assert clock_mhz([3]) == 800
    assert clock_mhz([2]) is None


@pytest.mark.parametrize("mhz", [None, [], [2000.0], [0.0, 0.0]])
def test_a_clock_that_is_not_told_for_each_cpu_is_none(monkeypatch, mhz):
    clocks(monkeypatch, mhz, online=[0, 1])
    assert clock_mhz([0, 1]) is None


def test_this_machines_clock_is_a_number_or_nothing():
    assert clock_mhz([0]) is None or 100 < clock_mhz([0]) < 10_000

"""What is printed of several nodes, and which flags go to them. Without ray."""

from __future__ import annotations

import argparse
import re

import pytest
from scripts import assert_one_line, run

from dlrm_tvm.cluster import connection, fleet
from dlrm_tvm.cluster.fleet import Member
from dlrm_tvm.cluster.measure import NODE_FLAGS, _run, _words, check_cluster_flags
from dlrm_tvm.cluster.report import ClusterReport, NodeReport
from dlrm_tvm.paths import ROOT
from multi_instance import parse_args

FIELDS = {
    "items_per_s": 1000.0,
    "window_opened_at": 100.0,
    "latency_ms": {"p50": 1.0, "p99": 2.0},
    "peak_fraction": 0.5,
    "warnings": [],
    "interrupted": False,
    "arrival_seed": None,
}


def node(address: str = "10.0.0.1:1", *, ahead_s: float = 0.0, reason: str = "", **fields: object) -> NodeReport:
    told = None if reason else {**FIELDS, **fields}
    return NodeReport(address, "host", told, reason, ("runs at nice 15",), ahead_s, 0.002)


def test_windows_are_compared_by_the_drivers_clock():
    """The second node's clock is 60 s ahead; its window opened 150 ms later."""
    report = ClusterReport((node(), node(ahead_s=60.0, window_opened_at=160.15)), 10.0)
    assert report.spread_ms == pytest.approx(150) and report.within_ms == pytest.approx(4)
    assert report.items_per_s == 2000 and report.status == 0
    assert "The windows opened 150 ms apart, more than 1 % of 10 s" in report.text()
    assert "windows opened" not in " ".join(ClusterReport(report.nodes, 20.0).warnings)


def test_a_lost_node_leaves_no_sum_and_status_3():
    report = ClusterReport((node(), node(reason="no answer for 10 s")), 10.0)
    assert (report.items_per_s, report.spread_ms, report.status) == (None, None, 3)
    assert "no figures (no answer for 10 s)" in report.text() and "no sum: 1 of 2 nodes" in report.text()
    fields = report.to_json()
    assert [each["lost"] for each in fields["nodes"]] == [None, "no answer for 10 s"]
    assert fields["nodes"][0]["items_per_s"] == 1000 and fields["items_per_s"] is None


def test_figures_of_a_window_that_was_cut_short_are_not_status_0():
    report = ClusterReport((node(), node(interrupted=True)), 10.0)
    assert report.interrupted and report.status == 130 and "(interrupted)" in report.text()


def test_the_keys_are_those_of_the_page():
    page = (ROOT / "docs" / "json.md").read_text()
    section = re.search(r"^## multi_instance.py --ray\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)[1]
    named = set(re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE))
    fields = ClusterReport((node(status=0), node(reason="gone")), 10.0).to_json()
    of_nodes = {f"nodes[].{key}" for each in fields["nodes"] for key in each if key not in FIELDS}
    assert set(fields) | of_nodes == named


def test_warnings_name_their_node():
    text = ClusterReport((node(), node(warnings=["Core 3 was busy."])), 10.0).text()
    assert "Warning: node 1: Core 3 was busy." in text and "Warning: node 0: runs at nice 15" in text


def arguments(monkeypatch, *words: str) -> argparse.Namespace:
    monkeypatch.setattr("sys.argv", ["multi_instance.py", *words])
    return parse_args()


def test_a_node_gets_the_flags_of_the_run_and_its_share_of_the_rate(monkeypatch):
    given = arguments(
        monkeypatch,
        "--ray",
        "x:1",
        "--duration",
        "3",
        "--preload",
        "--arrivals",
        "poisson",
        "--rate",
        "90",
        "--indices-per-bag",
        "3,1",
    )
    words = _words(given, 3)
    again = arguments(monkeypatch, *words)
    assert (again.duration, again.preload, again.arrivals, again.rate) == (3, True, "poisson", 30)
    assert again.indices_per_bag == given.indices_per_bag and "--indices-per-bag=3,1" in words
    assert (again.ray, again.warmup, again.cores) == (None, None, None)


def test_every_flag_is_served_or_refused(monkeypatch):
    """A flag that is added later is refused until it is listed."""
    given = arguments(monkeypatch, "--ray", "x:1", "--ray-nodes", "2", "--quiet")
    of_a_run = set(vars(given)) - {"ray", "ray_nodes", "quiet", "output", "arrival_seed"}
    assert set(NODE_FLAGS) < of_a_run
    for name in of_a_run - set(NODE_FLAGS):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is for one machine"):
            check_cluster_flags(argparse.Namespace(**{**vars(given), name: 0}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ray", "h:1", "--sweep", "batch=1"), "--sweep is for one machine. Leave it or --ray out."),
        (("--ray", "h:1", "--until-stable"), "--until-stable is for one machine."),
        (("--ray", "h:1", "--results", "x.json"), "--results is for one machine."),
        (("--ray-nodes", "2"), "--ray-nodes is for a Ray cluster. Give --ray HOST:PORT too"),
    ],
)
def test_flags_of_one_machine_are_refused(words, said):
    assert_one_line(run(*words), said)


def test_no_nodes_are_wrong_usage():
    done = run("--ray", "h:1", "--ray-nodes", "0")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "--ray-nodes" in done.stderr


def test_without_ray_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert_one_line(run("--ray", "127.0.0.1:1"), "--ray needs Ray", "pip install -r requirements-ray.txt")


@pytest.mark.parametrize("address", ["", "nowhere", "host:", ":5", "auto", "ray://h:1x"])
def test_an_address_is_a_host_and_a_port(monkeypatch, address):
    with pytest.raises(ValueError, match="HOST:PORT was wanted"):
        connection._probe(address)


def test_only_what_cannot_be_imported_is_said_not_to_run_there():
    died = "The actor died because its node ran out of memory"
    assert fleet._start_failure(ValueError(died)) == f"ValueError: {died}"
    missing = ValueError("failed to import on the worker: ModuleNotFoundError: No module named 'dlrm_tvm'")
    assert fleet._start_failure(missing).startswith(f"dlrm_tvm does not run from {ROOT} there (")


def test_figures_that_a_node_delivered_before_it_was_lost_are_kept():
    class Lost:
        members = alive = (Member("10.0.0.1:1", 2, None), Member("10.0.0.2:1", 2, None))
        lost = dict.fromkeys(members, "no answer for 10 s")

        def tell(self, method: str) -> None:
            pass

        def ask(self, method: str, look: object) -> dict:
            return {self.members[0]: (True, FIELDS)}

    facts = {member: {"host": "host", "warnings": []} for member in Lost.members}
    kept, lost = _run(Lost(), facts, 1.0, lambda text: None).nodes
    assert kept.fields == FIELDS and (lost.fields, lost.reason) == (None, "no answer for 10 s")

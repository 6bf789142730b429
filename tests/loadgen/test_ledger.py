"""The ledger of samples that are done, whatever the order of their batches."""

from __future__ import annotations

import numpy as np

from dlrm_tvm.loadgen.ledger import SampleLedger


def test_samples_complete_when_their_last_item_is_done_whatever_the_order() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 300, 500)
    ends = np.cumsum(lengths)
    ledger = SampleLedger(1000)
    ledger.issue(lengths[:200])
    ledger.issue(lengths[200:])
    cuts = np.arange(0, ends[-1], 128)
    batches = np.stack([cuts, np.minimum(cuts + 128, ends[-1]) - cuts], axis=1)
    rng.shuffle(batches)
    done = np.zeros(ends[-1], bool)
    reported: list[int] = []
    for group in np.array_split(batches, 97):
        for begin, items in group:
            done[begin : begin + items] = True
        reported += ledger.done(group).tolist()
        complete = [done[end - length : end].all() for length, end in zip(lengths, ends)]
        assert sorted(reported) == np.flatnonzero(complete).tolist()
        settled = int(np.argmin(complete)) if not all(complete) else len(complete)
        assert ledger.settled_items == (ends[settled - 1] if settled else 0)
    assert sorted(reported) == list(range(500))
    assert ledger.outstanding == 0


def test_nothing_done_completes_nothing() -> None:
    ledger = SampleLedger(1)
    ledger.issue(np.array([5]))
    assert len(ledger.done(np.empty((0, 2), np.int64))) == 0
    assert ledger.settled_items == 0 and ledger.outstanding == 1

"""Synthetic click logs, a day at a time: what the trained model of train_click_model.py learns from and is held to.

    logit(item, day) = bias + sum_j slope_j v_j + sum_t effect_t[c_t] + sum_(s,t) <taste_s[c_s], taste_t[c_t]>
    click ~ Bernoulli(sigmoid(logit))        v: dense values, c_t: category of table t, (s, t): pairs of `_PAIRS`

For DLRM-DCNv2 a category brings fixed others along (`multi_hot`), as in MLPerf's multi-hot Criteo. Counts are
log-normal and correlated, categories Zipf-skewed. Popularity, bias, slopes and effects walk at random from day to day,
so that a model of the days before is tried on a day that is not one of them. All from a seed; NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from dlrm_tvm.data.demo_weights import CRITEO_TABLE_ROWS, V2_INDICES_PER_BAG
from dlrm_tvm.data.reference_data import log_counts

TABLE_ROWS = tuple(min(rows, 1000) for rows in CRITEO_TABLE_ROWS)
NUM_DENSE = 13

_SEED = 20260101
# Standard deviations over items, roughly, of the parts of the logit. Together they let the best possible scores reach
# an AUC near 0.80, where Criteo's models are.
_DENSE_SPREAD, _EFFECT_SPREAD, _PAIR_SPREAD = 0.7, 1.2, 0.8
_BIAS = -1.0  # about a fifth of the items are clicked
_PAIRS = ((0, 9), (0, 19), (1, 10), (2, 20), (3, 21), (4, 13), (5, 11), (8, 22), (9, 19), (12, 16), (17, 23), (24, 25))
_TASTE_DIM = 4
# A day's step of each random walk: popularity in nats, the others as shares of the spread that each part has.
_POPULARITY_STEP, _EFFECT_STEP, _BIAS_STEP = 0.15, 0.12, 0.05


@dataclass(frozen=True)
class ClickItems:
    """dense [n, 13] float32 = log(1 + count); categories [n, 26] int64; labels [n] uint8, 1 where clicked.

    logits [n] float64: the hidden truth that the labels were drawn from.
    """

    dense: np.ndarray
    categories: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def draw_day(day: int, num_items: int) -> ClickItems:
    """Items of day 0, 1, ..: the same ones for the same arguments."""
    truth = _Truth.on(day)
    rng = np.random.default_rng([_SEED, 1, day])
    dense = _dense(rng, num_items)
    categories = np.stack(
        [np.searchsorted(np.cumsum(p)[:-1], rng.random(num_items), side="right") for p in truth.popularity], axis=1
    )
    logits = truth.logits(dense, categories)
    labels = rng.random(num_items) < 1 / (1 + np.exp(-logits))
    return ClickItems(dense, categories, labels.astype(np.uint8), logits)


def join(days: list[ClickItems]) -> ClickItems:
    return ClickItems(
        np.concatenate([day.dense for day in days]),
        np.concatenate([day.categories for day in days]),
        np.concatenate([day.labels for day in days]),
        np.concatenate([day.logits for day in days]),
    )


def multi_hot(categories: np.ndarray) -> list[np.ndarray]:
    """[n, 26] -> of each table [n, MLPerf v2's indices per bag] int64: the category, then always the same others. They
    are drawn as popular as on day 0, so that a long bag holds some rows several times."""
    columns = zip(categories.T, _others())
    return [np.concatenate([column[:, None], others[column]], axis=1) for column, others in columns]


@cache
def _others() -> tuple[np.ndarray, ...]:
    """Per table [rows, indices per bag - 1]: what each category brings along."""
    rng, popularity = np.random.default_rng([_SEED, 3]), _Truth.on(0).popularity
    return tuple(rng.choice(len(p), (len(p), hot - 1), p=p) for p, hot in zip(popularity, V2_INDICES_PER_BAG))


def _dense(rng: np.random.Generator, num_items: int) -> np.ndarray:
    """[n, 13] float32: log(1 + x) of log-normal counts x that share one factor, zero at times."""
    level = np.linspace(0.3, 5.0, NUM_DENSE)
    activity = rng.standard_normal((num_items, 1))
    own = rng.standard_normal((num_items, NUM_DENSE))
    return log_counts(np.floor(np.exp(level + 0.6 * activity + 0.9 * own)).clip(max=1e8))


@dataclass(frozen=True)
class _Truth:
    """popularity, effects: per table [rows]; tastes: per table [rows, _TASTE_DIM]; slopes [13] on centred values."""

    popularity: list[np.ndarray]
    effects: list[np.ndarray]
    tastes: list[np.ndarray]
    slopes: np.ndarray
    bias: float

    @classmethod
    def on(cls, day: int) -> _Truth:
        """The truth of day 0, walked `day` steps on."""
        rng = np.random.default_rng([_SEED, 0])
        exponents = rng.uniform(0.8, 1.3, len(TABLE_ROWS))
        log_popularity = [-a * np.log(1 + rng.permutation(rows)) for a, rows in zip(exponents, TABLE_ROWS)]
        per_table = _EFFECT_SPREAD / len(TABLE_ROWS) ** 0.5
        effects = [per_table * rng.standard_normal(rows) for rows in TABLE_ROWS]
        # <a, b> of two vectors with entries of deviation s has deviation s^2 sqrt(dim).
        per_entry = (_PAIR_SPREAD / (len(_PAIRS) * _TASTE_DIM) ** 0.5) ** 0.5
        tastes = [per_entry * rng.standard_normal((rows, _TASTE_DIM)) for rows in TABLE_ROWS]
        per_slope = _DENSE_SPREAD / NUM_DENSE**0.5
        slopes, bias = per_slope * rng.standard_normal(NUM_DENSE), _BIAS
        for step in range(day):
            rng = np.random.default_rng([_SEED, 2, step])
            log_popularity = [p + _POPULARITY_STEP * rng.standard_normal(len(p)) for p in log_popularity]
            effects = [e + _EFFECT_STEP * per_table * rng.standard_normal(len(e)) for e in effects]
            slopes = slopes + _EFFECT_STEP * per_slope * rng.standard_normal(NUM_DENSE)
            bias += _BIAS_STEP * rng.standard_normal()
        weights = [np.exp(p) for p in log_popularity]
        return cls([w / w.sum() for w in weights], effects, tastes, slopes, bias)

    def logits(self, dense: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """[n] float64."""
        result = self.bias + (dense.astype(np.float64) - 3) @ self.slopes
        for t, effects in enumerate(self.effects):
            result += effects[categories[:, t]]
        for s, t in _PAIRS:
            result += (self.tastes[s][categories[:, s]] * self.tastes[t][categories[:, t]]).sum(axis=1)
        return result

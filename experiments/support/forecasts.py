"""Forecasts as sample paths: simple ones to compare with, and scores.

A forecast is an array [H, S, N]: S paths of H years for N rows, NaN in rows that it cannot say anything of.

    CRPS = mean |X − y| − ½ mean |X − X′|        X, X′ paths, y what happened; for one path |X − y|

The continuous ranked probability score (CRPS) is low for a forecast that is near and as sure as it may be.

Reference: Gneiting & Raftery 2007, Strictly proper scoring rules, prediction, and estimation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

WITHIN = 0.05, 0.95  # the interval of 90 %
SHRUNK = 3  # a row's own spread counts as so many steps of all rows, beside its own steps


class Scores(NamedTuple):
    """Means over rows, by horizon [H]: error of the median, CRPS, share within the interval of 90 %."""

    mae: np.ndarray
    crps: np.ndarray
    covered: np.ndarray


def score(paths: np.ndarray, happened: np.ndarray, rows: np.ndarray) -> Scores:
    """Scores of a forecast.

    Args:
      paths: [H, S, N].
      happened: [H, N].
      rows: whether a row counts, [H, N].
    """
    low, high = np.quantile(paths, WITHIN, axis=1)
    of_rows = (
        np.abs(np.median(paths, axis=1) - happened),
        crps(paths, happened),
        (low <= happened) & (happened <= high),
    )
    return Scores(*(np.mean(of, axis=1, where=rows) for of in of_rows))


def crps(paths: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """The CRPS of every horizon and row, [H, N]."""
    ordered, count = np.sort(paths, axis=1), paths.shape[1]
    ranks = (2 * np.arange(1, count + 1) - count - 1)[:, None]
    return np.abs(paths - happened[:, None]).mean(1) - (ranks * ordered).sum(1) / count**2


# Forecasts without a network, from the values y [T, N] up to now.


def last_value(y: np.ndarray, horizon: int, samples: int, draw: np.random.Generator) -> np.ndarray:
    """The last value, with the spread of the row's own changes over so many years."""
    ahead = []
    for years in range(1, horizon + 1):
        own = spread(y[years:] - y[:-years])
        ahead.append(y[-1] + own * draw.normal(size=(samples, y.shape[1])))
    return np.array(ahead)


def autoregression(
    y: np.ndarray, order: int, horizon: int, samples: int, draw: np.random.Generator
) -> np.ndarray:
    """y_t from the last `order` values, the same weights for all rows, by least squares; own spreads."""
    lagged = np.stack([y[order - lag : len(y) - lag] for lag in range(1, order + 1)], -1)
    past = np.concatenate([lagged, np.ones((*lagged.shape[:-1], 1))], -1)  # [T − order, N, order + 1]
    known = np.isfinite(past).all(-1) & np.isfinite(y[order:])
    weights, *_ = np.linalg.lstsq(past[known], y[order:][known])
    own = spread(y[order:] - past @ weights)
    path = [np.repeat(now[None], samples, 0) for now in y[-order:]]
    for _ in range(horizon):
        mean = sum((w * now for w, now in zip(weights, reversed(path[-order:]), strict=False)), weights[-1])
        path.append(mean + own * draw.normal(size=mean.shape))
    return np.array(path[order:])


def of_log_changes(forecast: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A forecast that reads changes of log y in the place of y."""
    return lambda y: y[-1] * np.exp(np.cumsum(forecast(np.diff(np.log(y), axis=0)), axis=0))


def spread(errors: np.ndarray) -> np.ndarray:
    """Root mean square of each row [T, N] -> [N]; a row with few errors has nearly that of all."""
    squares, count = np.nansum(errors**2, 0), np.isfinite(errors).sum(0)
    return np.sqrt((squares + SHRUNK * np.nanmean(errors**2)) / (count + SHRUNK))

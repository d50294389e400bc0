"""Births per woman by country and year, from statsmodels: rows of unequal length, with gaps.

The series are the total fertility rates of the World Bank, 1960 to 2011, of countries and groups of
countries. Some are estimates that were smoothed over years, some are counted each year; some begin late or
have gaps.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import statsmodels.datasets.fertility

FIRST, LAST = 1960, 2011
LEARNT, VALIDATED = 1991, 2001  # the last years that are learnt, and that decide when to stop
FEWEST = 10  # known years of a row


class Rates(NamedTuple):
    """Names [N], and births per woman [T, N], time first, NaN where they are not known."""

    names: list[str]
    births: np.ndarray


@functools.cache
def rates() -> Rates:
    """All rows with some known years; T = 52 years."""
    table = statsmodels.datasets.fertility.load_pandas().data
    years = [str(year) for year in range(FIRST, LAST + 1)]
    births = table[years].to_numpy(float)
    some = np.isfinite(births).sum(1) >= FEWEST
    return Rates(table["Country Name"][some].tolist(), births[some].T)


def at(year: int) -> int:
    """Where a year stands."""
    return year - FIRST

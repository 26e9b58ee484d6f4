"""How fast something grows, whatever single samples do: Theil and Sen's estimate on medians of windows.

The slope is the median of those of all pairs of points; its interval is Sen's (1968), of 95 %, from the distribution of
Kendall's statistic. Neighbouring samples of memory are not independent, and medians of windows nearly are, so the
points are the medians of WINDOWS windows of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

WINDOWS = 20
NORMAL_95 = 1.96


def robust_slope(seconds: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """`percent_per_h`, and `low` and `high` of it, all in % of the median of `values`; `median`; at least 3 samples."""
    parts = [part for part in np.array_split(np.arange(len(seconds)), WINDOWS) if len(part)]
    hours = [float(np.median(np.take(seconds, part))) / 3600 for part in parts]
    points = [float(np.median(np.take(values, part))) for part in parts]
    slopes = sorted((points[j] - points[i]) / (hours[j] - hours[i]) for i, j in combinations(range(len(points)), 2))
    count = len(points)
    reach = NORMAL_95 * np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, int((len(slopes) - reach) / 2))
    high = min(len(slopes) - 1, int(np.ceil((len(slopes) + reach) / 2)))
    middle = float(np.median(values))
    percent = [100 * slope / middle for slope in (float(np.median(slopes)), slopes[low], slopes[high])]
    return dict(zip(("percent_per_h", "low", "high"), percent, strict=True)) | {"median": middle}

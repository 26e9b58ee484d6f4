"""The costs that the model of a cluster starts from, as they were measured on one machine.

`measured.json` is written by benchmarks.scale_costs, and a test holds it equal to the figures of docs/figures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from he_engine.params import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one profile."""

    scan_bytes_per_s: float  #: index read by one query on all threads; memory limits it, so of any profile
    sharing: dict[int, float]  #: queries at once → times faster a query than alone
    query_s: float  #: to encrypt a query
    recover_row_s: float  #: to verify and decrypt, one thread, secrets kept
    answer_bytes_per_s: float  #: answers through the gRPC of one process
    spread: float  #: of a pass: the mean of what it takes beyond its least time, in units of that


@cache
def facts() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(files("he_client.scaling").joinpath("measured.json").read_text())
    return loaded


def measured(profile: Profile) -> Measured:
    of = facts()["profiles"][profile.value]
    return Measured(
        scan_bytes_per_s=facts()["scan_bytes_per_s"],
        sharing={int(queries): gain for queries, gain in of["sharing"].items()},
        query_s=of["query_s"],
        recover_row_s=of["recover_row_s"],
        answer_bytes_per_s=facts()["answer_bytes_per_s"],
        spread=facts()["spread"],
    )

"""benchmarks.scale, tiny: documented keys, and comparisons that say when they miss."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from typing import Any

import pytest

from benchmarks import scale
from he_client.scaling.service_times import MeasuredTimes
from he_client.scaling.sharing import Sharing
from he_client.scaling.simulated import Simulated


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "CALLERS", (1, 2))
        patch.setattr(scale, "SIMULATED", 200)
        arguments = {"rows": 2000, "dim": 16, "profile": "compact", "rounds": 4, "loads": [0.2], "queries": 12}
        return scale.measure(Namespace(**arguments, json=None))


def test_keys_are_those_of_the_docstring(figures: dict[str, Any]) -> None:
    assert scale.__doc__ is not None
    documented = set(re.findall(r"`(\w+)`", scale.__doc__[scale.__doc__.index("JSON keys") :]))
    assert set(figures) <= documented
    assert set(figures["one_node"]) <= documented and set(figures["one_node"]["measured"]) <= documented
    assert set(figures["load"][0]) - documented == set() and set(figures["pass_s"]) <= documented
    json.dumps(figures)


def test_everything_was_measured(figures: dict[str, Any]) -> None:
    assert figures["identical_answers"] > 0
    for name in ("one_node", "two_nodes", "two_nodes_alone"):
        one = figures[name]
        assert 0 < one["measured"]["p50_s"] <= one["measured"]["p99_s"]
        assert one["ratio_p50"] == pytest.approx(one["simulated"]["p50_s"] / one["measured"]["p50_s"])
    assert figures["sharing"][1] == 1.0 and all(1 <= gain <= b for b, gain in figures["sharing"].items())
    assert figures["load"][0]["share"] == 0.2


@pytest.mark.parametrize(("measured_s", "within"), [(1.0, True), (1.14, True), (1.2, False), (0.8, False)])
def test_a_simulation_that_is_off_misses_the_goal(
    monkeypatch: pytest.MonkeyPatch, measured_s: float, within: bool
) -> None:
    monkeypatch.setattr(scale, "SIMULATED", 50)
    one = Simulated(shards=1, sharing=Sharing({}, 1), times=MeasuredTimes([1.0]), queries_per_s=1e-6)
    found = scale.beside([measured_s] * 9, one)
    assert found["within_goal"] is within and found["ratio_p50"] == pytest.approx(1 / measured_s)

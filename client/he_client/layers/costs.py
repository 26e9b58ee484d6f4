"""What layers cost, as it was measured: the numbers of docs/figures that `hesearch advise` prints.

`costs.json` is written by benchmarks.layers_choice, and a test holds it equal to the figures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from he_engine.params import Profile

#: Layers in the order in which the benchmark switched them on, each beside those before it.
STEPS = ("tls", "identity", "policies", "audit", "verification", "quotas", "at_rest")


@dataclass(frozen=True, slots=True)
class Range:
    """A median of a run, and the 95 % of it."""

    value: float
    low: float
    high: float


@cache
def costs() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(files("he_client.layers").joinpath("costs.json").read_text())
    return loaded


def measured_profile(profile: Profile) -> Profile:
    """Whose measurement stands for this one: `precise` has as many bytes as `exact`, and its layers no run."""
    return profile if profile.value in costs()["steps"] else Profile.EXACT


def added(layer: str, profile: Profile) -> Range | None:
    """What a layer of STEPS added to a query, as a share of the query without any; None for other layers."""
    steps = costs()["steps"][measured_profile(profile).value]
    return Range(*steps[layer]["added"]) if layer in steps else None


def overhead(chosen: frozenset[str], profile: Profile) -> tuple[Range, tuple[str, ...]]:
    """A query with the first set of the benchmark that has all chosen layers ÷ one with none; and that set."""
    run = costs()["steps"][measured_profile(profile).value]
    wanted = chosen & set(STEPS)
    if wanted <= {"verification"}:
        return (Range(*costs()["verification_alone"][measured_profile(profile).value]), ("verification",))
    last = max(STEPS.index(layer) for layer in wanted)
    return Range(*run[STEPS[last]]["ratio"]), STEPS[: last + 1]


def recall(profile: Profile) -> float:
    """recall@10 beside the plaintext search of 98,505 titles of ICD-10-CM."""
    return float(costs()["profiles"][profile.value]["recall_at_10"])


def tenseal_ratio(profile: Profile) -> float:
    """The server's time of the engine `tenseal` ÷ that of the engine `hint`."""
    return float(costs()["profiles"][profile.value]["tenseal_ratio"])


def note(layer: str, profile: Profile) -> str:
    """The cost of one layer in words, of a query unless it says otherwise."""
    of = costs()["profiles"][profile.value]
    if share := added(layer, profile):
        interval = f"({share.low:+.1%} to {share.high:+.1%})"
        text = f"{share.value:+.1%} {interval}" if share.low > 0 else f"not measurable {interval}"
        sealed = costs()["at_rest"]
        if layer == "at_rest":
            text += f"; storing × {sealed['store']:.1f}, a start × {sealed['start']:.0f}"
        return text
    if layer == "federated":
        summed = costs()["federated"]
        return (
            f"none of a query; an update × {summed['bytes_up']:.1f} in bytes, a round × {summed['seconds']:.1f} in "
            f"time, accuracy {summed['points']:+.2f} points"
        )
    if layer == "encryption":
        return (
            f"`{profile.value}`: server × {of['server_ratio']:.2f} of the faster plaintext scan, "
            f"whole query × {of['whole_ratio']:.2f}; "
            f"{of['index_bytes_per_coordinate']:.0f} bytes a coordinate, where float32 has 4"
        )
    return _WORDS.get(layer, "none of a query")


_WORDS = {
    "text": "none of a query; once a text",
    "privacy": "none of a query; vectors with noise are of no use for search, models are",
    "scores": "none of a query; what `exact` costs beside `compact` is in the row of encryption",
    "keys": "none of a query; Argon2id once, when the key is opened",
    "payloads": "whole payload columns are downloaded once, and cached",
    "copies": "the disk that they take; a backup copies what is new",
    "parsers": "part of every time above",
}

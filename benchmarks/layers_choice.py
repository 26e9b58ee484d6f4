"""What `hesearch advise` knows of costs, and the table and the figure of docs/layers.md: from the committed figures.

python -m benchmarks.layers_choice
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.markdown import Figures, Run
from benchmarks.standing import drawing
from he_client.layers import catalogue
from he_client.layers.catalogue import LAYERS
from he_client.layers.costs import STEPS
from he_client.layers.threats import THREATS
from he_engine.params import Profile

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
COSTS = Path(catalogue.__file__).with_name("costs.json")
PAGE, PLOT = ROOT / "docs" / "layers.md", FIGURES / "standing.svg"
BEGIN, END = "<!-- written: python -m benchmarks.layers_choice -->", "<!-- end -->"


def costs(run: Run) -> str:
    """costs.json: layers of benchmarks.layers; encryption and precision of the others. Raises FileNotFoundError."""
    stacks = {profile: run.load(f"layers_{profile}") for profile in ("exact", "compact")}
    arguments = stacks["exact"]["arguments"]
    sealed = run.load("at_rest")
    found = {
        "at": {"rows": arguments["rows"], "dim": arguments["dim"]},
        "steps": {profile: {step: _step(f, step) for step in STEPS} for profile, f in stacks.items()},
        "verification_alone": {p: _ratio(f["variants"]["verification_alone"]) for p, f in stacks.items()},
        "profiles": {profile.value: _profile(run, profile.value) for profile in Profile},
        "federated": _federated(run.load("federated")),
        "at_rest": {"store": _short(sealed["ratio_store"]), "start": _short(sealed["ratio_start"])},
    }
    return json.dumps(found, indent=1) + "\n"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _ratio(step: Figures) -> list[float]:
    return [_short(step[f"ratio_to_plain{end}"]) for end in ("", "_low", "_high")]


def _step(figures: Figures, name: str) -> dict[str, list[float]]:
    step, plain_s = figures["steps"][name], figures["steps"]["plain"]["median_s"]
    return {"added": [_short(step[f"added_s{end}"] / plain_s) for end in ("", "_low", "_high")], "ratio": _ratio(step)}


def _federated(figures: Figures) -> dict[str, float]:
    """Sums of encrypted updates beside plain ones: shares of bytes and time; percentage points of accuracy."""
    plain, encrypted = (figures["ways"][way] for way in ("plain", "encrypted"))
    shares = {
        name: _short(encrypted[of] / plain[of])
        for name, of in (("bytes_up", "bytes_up"), ("seconds", "seconds_a_round"))
    }
    return {**shares, "points": _short(100 * (encrypted["accuracy"] - plain["accuracy"]))}


def _profile(run: Run, profile: str) -> dict[str, Any]:
    alone, whole, real = (run.load(f"{kind}_{profile}") for kind in ("overhead", "service", "icd"))
    return {
        "server_ratio": _short(alone["ratio_server_vs_best_plaintext"]),
        "whole_ratio": _short(whole["ratio_query_vs_plaintext"]),
        "index_bytes_per_coordinate": _short(alone["index_bytes_per_coordinate"]),
        "tenseal_ratio": _short(alone["ratio_tenseal_packed_vs_hint"]),
        "recall_at_10": _short(real["recall_at_10"]),
    }


def rendered() -> str:
    """The table of docs/layers.md."""
    from he_client.layers.costs import note  # reads costs.json, which main has just written

    return "\n".join(
        ["| Threat | Layer | Cost of a query | Tests | What is left |", "|---|---|---|---|---|", *_rows(note)]
    )


def _rows(note: Any) -> Iterator[str]:
    for threat in THREATS.values():
        for layer, tests in threat.by.items():
            one = LAYERS[layer]
            shown = ", ".join(f"`tests/{test}`" for test in tests)
            profiles = (Profile.EXACT, Profile.COMPACT) if layer == "encryption" else (Profile.EXACT,)
            cost = "; ".join(note(layer, profile) for profile in profiles)
            yield f"| {threat.title} | [{one.title}]({one.page}) | {cost} | {shown} | {threat.left} |"


def written(page: str) -> str:
    """The page with the table between the marks."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{rendered()}\n{END}", page, flags=re.DOTALL)


def main() -> int:
    COSTS.write_text(costs(Run(FIGURES)))
    PAGE.write_text(written(PAGE.read_text()))
    PLOT.write_text(drawing())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

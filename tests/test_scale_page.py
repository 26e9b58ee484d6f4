"""docs/scale.md is what the model and the simulation say today, and so are the numbers in its sentences."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import scale_page
from he_client.plan import ID_MEMORY_BYTES, Sizes
from he_client.scaling.cluster import Demand, plan_cluster
from he_client.scaling.measured import facts, measured
from he_engine.params import Parameters, Profile


def test_the_page_is_that_of_the_figures() -> None:
    page = scale_page.PAGE.read_text()
    assert page == scale_page.written(page), "run `python -m benchmarks.scale_page`"
    for name in scale_page.sections():
        assert f"<!-- written: {name} -->" in page


@pytest.mark.parametrize("number", [0, 2, 4], ids=["1 node, idle", "1 node, loaded", "10 nodes"])
def test_simulated_figures_come_out_again(number: int) -> None:
    stored = json.loads(scale_page.SIMULATED.read_text())
    one = stored["clusters"][number]
    assert (stored["queries"], stored["seed"]) == (scale_page.QUERIES, scale_page.SEED)
    again = scale_page.simulated(one["shards"], one["share"])
    assert again.pop("outcome") == pytest.approx(one.pop("outcome"), rel=1e-9)
    assert again == pytest.approx(one)


def test_numbers_in_the_sentences() -> None:
    text = " ".join(scale_page.PAGE.read_text().split())
    billion = Sizes(Parameters.choose(Profile.COMPACT, scale_page.DIM), 10**9)
    ten = plan_cluster(Demand(rows=10**10, dim=scale_page.DIM), scale_page.NODE, scale_page.BETWEEN)
    for said in (
        f"{facts()['scan_bytes_per_s'] / 1e9:.1f} GB/s is a machine of two cores",
        f"c is {facts()['spread']:.3f}, from the ranges of 90 repeated passes",
        f"32 pass {measured(Profile.COMPACT).sharing[32]:.1f} times as fast",
        f"{measured(Profile.EXACT).sharing[32]:.1f} times in `exact`",
        f"{billion.cache_bytes / 1e9:.0f} bytes a row here",
        f"({ID_MEMORY_BYTES} bytes a row) is the ids",
        f"{billion.expanded_hint_bytes / 1e9:.0f} are hints",
        f"{ten.nodes} nodes answer ten billion rows",
        f"a billion rows that is {billion.answer_bytes / 1e9:.0f} GB a query",
        f"of ten billion {ten.answer_bytes / 1e9:.0f} GB",
    ):
        assert said in text


def test_measured_figures_become_a_table(tmp_path: Path) -> None:
    assert any("benchmarks.scale --json" in line for line in scale_page.measured_lines(tmp_path / "none.json"))
    summary = {"mean_s": 0.02, "p50_s": 0.018, "p99_s": 0.04}
    one = {"measured": summary, "simulated": summary, "ratio_mean": 1.0, "ratio_p50": 0.8, "within_goal": False}
    figures = {
        "arguments": {"rows": 5, "dim": 8, "profile": "compact", "rounds": 3, "queries": 4, "loads": [0.5]},
        "machine": {"cpu": "a processor", "cores": 2, "kernel_targets": ["portable"]},
        "goal": 0.15, "one_node": one, "two_nodes": one, "two_nodes_alone": one, "load": [one | {"share": 0.5}],
    }  # fmt: skip
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(figures))
    text = "\n".join(scale_page.measured_lines(path))
    assert "| one node, load 50% | 18.0 | 18.0 | 0.80 | 20.0 | 20.0 | 1.00 | no |" in text
    assert "python -m benchmarks.scale --rows 5 --dim 8 --profile compact --rounds 3 --queries 4 --loads 0.5" in text


def test_tables_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from he_client.cli import main

    assert main(["plan", "--cluster", "--rows", "1000000000", "--dim", "768", "--profile", "compact", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    demand = scale_page._demand(10**9)
    assert plan == asdict(plan_cluster(demand, scale_page.NODE, scale_page.BETWEEN))

"""`hesearch plan --cluster`: its options reach the model, and what it prints is what the model says."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from he_client.cli import main
from he_client.scaling.cluster import Between, Demand, Node, plan_cluster
from he_client.scaling.measured import facts
from he_engine.params import Profile

COMMAND = ["plan", "--cluster", "--rows", "10000000", "--dim", "768", "--profile", "compact"]


def _fields(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, object]]:
    assert main([*COMMAND, "--json", *options]) == 0
    fields: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)
    return fields


def test_defaults_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    fields = _fields(capsys)
    demand, node = Demand(rows=10_000_000, dim=768), Node(scan_bytes_per_s=facts()["scan_bytes_per_s"])
    assert fields["plan"] == asdict(plan_cluster(demand, node, Between()))
    assert fields["simulated"] is None and fields["measured"] == facts()


def test_every_option_reaches_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--growth 0.5 --years 2 --queries-per-s 0.5 --batch 8 --replicas 2 --nodes 9 --front-ends 3 --hedge 0.95 "
        "--server-gb-s 30 --node-memory-gb 128 --node-network-gbit 25 --node-price 1.5 --link-mbps 500 --rtt-ms 20 "
        "--node-rtt-ms 0.1 --client-threads 4 --client-memory-gb 32 --price-per-gb 0 --spread 0.2"
    )
    fields = _fields(capsys, *options.split())
    demand = Demand(
        rows=10_000_000, dim=768, profile=Profile.COMPACT, growth=0.5, years=2, queries_per_s=0.5, batch=8, replicas=2,
        shards=9, front_ends=3, hedge=0.95,
    )  # fmt: skip
    node = Node(scan_bytes_per_s=30e9, memory_bytes=128e9, network_bytes_per_s=25e9 / 8, price_per_hour=1.5)
    between = Between(
        link_bytes_per_s=62.5e6, round_trip_s=0.02, node_round_trip_s=1e-4, client_threads=4, client_memory_bytes=32e9,
        price_per_gb=0.0,
    )  # fmt: skip
    assert fields["plan"] == json.loads(json.dumps(asdict(plan_cluster(demand, node, between, 0.2))))


def test_it_simulates(capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = (_fields(capsys, "--simulate", "50", "--seed", seed)["simulated"] for seed in "112")
    assert first == again != other
    assert first["queries"] == 45 and first["failed"] == 0
    failing = _fields(capsys, "--simulate", "200", "--failures-days", "0.005", "--repair-s", "900")["simulated"]
    assert failing["failed"] != 0


def test_the_text_names_assumptions_and_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--rows", "1000000000", "--simulate", "20"]) == 0
    text = capsys.readouterr().out
    for said in (
        "Extrapolated from 1,000,000 rows × 512 on one machine", "assumed: nodes of 64 GB", "4 GB received",
        "57 shards × 1; limit: memory", "limit      client's memory", "in memory: more than 64 GB",
        "simulated, 18 queries",
    ):  # fmt: skip
        assert said in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--nodes", "4"], "--nodes: only with --cluster"),
        (["--cluster", "--threads", "77"], "--threads: not with --cluster"),
        (["--cluster", "--failures-days", "3"], "--failures-days: only with --simulate"),
        (["--cluster", "--seed", "3"], "--seed: only with --simulate"),
        (["--cluster", "--simulate", "50", "--repair-s", "9"], "--repair-s: only with --failures-days"),
        (["--cluster", "--years", "3"], "--years: only with --growth"),
        (["--cluster", "--growth", "0.5"], "--growth: only with --years"),
        (["--cluster", "--batch", "0"], "--batch: got '0'"),
        (["--cluster", "--growth", "-1"], "--growth: got '-1'"),
    ],
)
def test_options_out_of_place(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--rows", "9", "--dim", "8", "--link-mbps", "1", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--hedge", "0.9"], "hedge: got 1 copy"),
        (["--hedge", "1.5"], "hedge: got 1.5, expected a quantile between 0 and 1"),
        (["--replicas", "2", "--hedge", "2"], "hedge: got 2"),
        (["--rows", "1000000000", "--nodes", "3"], "nodes: got 3"),
        (["--simulate", "5"], "simulation: got 5 queries"),
    ],
)
def test_plans_that_cannot_be(options: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, *options]) == 2
    assert reason in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "hesearch plan --cluster --rows 1000000000" in capsys.readouterr().out

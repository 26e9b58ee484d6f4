"""`hesearch plan` promises bytes exactly: each is compared with what a real collection stores, keeps and sends."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import Client, CollectionKey, InvalidInput, collection, plan
from he_client.calibrate import calibrate
from he_client.cli import main
from he_client.plan import Link, Plan, Rates, Sizes, candidates, choose, overlapped, predict
from he_engine.errors import ParameterError
from he_engine.params import Parameters, Profile, max_stride
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows

RATES = Rates(
    server_bytes_per_s=20e9,
    client_threads=2,
    query_s=1e-3,
    recover_group_s=1e-4,
    recover_row_s=5e-8,
    derive_row_s=1e-7,
    build_row_s=1e-5,
    open_row_s=1e-6,
)
LINK = Link.over(125e6, 1e-3)


@pytest.mark.parametrize(
    ("profile", "dim", "stride", "metric", "rows", "segment_bytes"),
    [
        ("exact", 37, 8, "cosine", 1500, 64 << 20),
        ("exact", 100, 32, "ip", 1, 64 << 20),
        ("exact", 5, 256, "cosine", 33, 64 << 20),  # one plane, most of it empty
        ("precise", 70, 16, "l2", 700, 64 << 20),
        ("precise", 24, 1, "cosine", 20_000, 2 << 20),  # segments of two blocks, and one of one
        ("compact", 100, 128, "cosine", 8000, 200 << 13),  # a group of two segments, and one of one
        ("compact", 3, 4, "cosine", 20_000, 1 << 16),  # ids of one, two and three bytes, in several segments
        ("compact", 129, 64, "l2", 130, 1 << 16),
        ("compact", 16, 16, "ip", 1025, 1 << 12),  # a block exceeds a segment
    ],
)
def test_bytes_are_those_of_a_real_collection(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch,
    profile: str, dim: int, stride: int, metric: str, rows: int, segment_bytes: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(collection, "SEGMENT_BYTES", segment_bytes)
    monkeypatch.setattr(plan, "SEGMENT_BYTES", segment_bytes)
    sizes = Sizes(Parameters.choose(profile, dim, stride), rows)
    vectors, bound = unit_rows(rng, rows, dim), None if metric == "cosine" else 2.0
    with Client(tmp_path / "server", cache=tmp_path / "cache") as client:
        made = client.create_collection(
            "c", dim=dim, key=CollectionKey.generate(), metric=metric, norm_bound=bound, profile=profile, stride=stride
        )
        made.insert(range(rows), vectors)
        made.search(vectors[0], k=1)
        report, info = made.last_search, client.describe("c")
        manifest, segments = made._state.current
        parts = dict.fromkeys(pb.PartKind.values(), 0)
        for entry in manifest.message.segments:
            for part in entry.parts:
                parts[part.kind] += part.length_bytes
        hints = sum(s.engine.hint.nbytes for s in segments)
        fingerprints = sum(s.engine.fingerprint.sums.nbytes for s in segments)
        engine: Any = made._engine
        assert report is not None
        assert (report.query_bytes, report.answer_bytes) == (sizes.query_bytes, sizes.answer_bytes)
        assert (info.segments, info.blocks, info.index_bytes) == (sizes.segments, sizes.blocks, sizes.index_bytes)
        assert parts[pb.PART_KIND_INDEX] == sizes.index_bytes
        assert parts[pb.PART_KIND_HINT] == sizes.hint_bytes
        assert parts[pb.PART_KIND_FINGERPRINT] == sizes.fingerprint_bytes
        assert hints == sizes.expanded_hint_bytes
        assert engine._secrets._bytes == sizes.secret_bytes
        assert fingerprints + engine._sums._bytes == sizes.fingerprint_memory_bytes
        if metric == "l2":  # 8 bytes a row, and a tag and a length for each segment
            assert 8 * rows < parts[pb.PART_KIND_ROWS] - sizes.row_table_bytes <= 8 * rows + 6 * sizes.segments
        else:
            assert parts[pb.PART_KIND_ROWS] == sizes.row_table_bytes
            assert info.stored_bytes == sizes.stored_bytes
            assert sum(p.stat().st_size for p in (tmp_path / "cache").iterdir()) == sizes.cache_bytes


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("dim", [1, 7, 384, 1000, 16384])
def test_candidates_are_the_strides_worth_a_look(profile: Profile, dim: int) -> None:
    found = candidates(profile, dim)
    strides = [p.stride for p in found]
    assert strides == [strides[0] << i for i in range(len(found))]
    assert all(4 * p.block_words <= collection.SEGMENT_BYTES for p in found)
    assert strides[-1] == max_stride(found[0].ring) or strides[-2:-1] < [dim] <= strides[-1:]
    assert strides[0] == 1 or 8 * found[0].block_words > collection.SEGMENT_BYTES


def test_each_doubling_of_the_stride_halves_the_query_and_costs_cache() -> None:
    sizes = [Sizes(p, 200_000) for p in candidates(Profile.COMPACT, 768)]
    for one, two in itertools.pairwise(sizes):
        assert two.query_bytes == one.query_bytes / 2
        assert two.expanded_hint_bytes == pytest.approx(2 * one.expanded_hint_bytes, rel=0.02)
        assert two.hint_bytes > 1.9 * one.hint_bytes
        assert two.fingerprint_bytes < one.fingerprint_bytes


def test_more_rows_never_cost_less() -> None:
    p = Parameters.choose("exact", 100)
    plans = [predict(p, rows, RATES, LINK) for rows in (1, 2, 1000, 10_000, 10**6, 10**7)]
    for less, more in itertools.pairwise(plans):
        for name in ("server_disk_bytes", "client_cache_bytes", "client_memory_bytes", "received_bytes"):
            assert getattr(less, name) <= getattr(more, name)
        for name in ("upload_s", "open_s", "server_s", "recover_work_s", "latency_s"):
            assert getattr(less, name) <= getattr(more, name)
    assert {p.sent_bytes for p in plans} == {4 * p.block_words}


@pytest.mark.parametrize(
    ("changed", "limit"),
    [({"server_bytes_per_s": 1e9}, "server"), ({"query_s": 1.0}, "client"), ({}, "link")],
)
def test_what_limits_a_query(changed: dict[str, float], limit: str) -> None:
    p = Parameters.choose("exact", 512)
    usual = predict(p, 100_000, RATES, Link.over(1.25e6, 1e-3))
    slower = predict(p, 100_000, replace(RATES, **changed), LINK if changed else Link.over(1.25e6, 1e-3))
    assert slower.limit == limit
    assert usual.latency_s > predict(p, 100_000, RATES, LINK).latency_s, "a slower link takes longer"


def test_secrets_that_are_not_kept_are_derived_again() -> None:
    """Beyond the cache's 256 MiB, 4·P·g bytes a row, each further row costs derive_row_s too."""
    p = Parameters.choose("exact", 512, 32)
    rows = 1 << 20  # 256 MiB of secrets
    free = replace(RATES, derive_row_s=0.0)
    assert predict(p, rows, RATES, LINK).recover_work_s == predict(p, rows, free, LINK).recover_work_s
    more = predict(p, 2 * rows, RATES, LINK).recover_work_s - predict(p, 2 * rows, free, LINK).recover_work_s
    assert more == pytest.approx(rows * RATES.derive_row_s)


def test_stages_that_share_a_machine_take_longer() -> None:
    p = Parameters.choose("exact", 512)
    apart, half, turns = (predict(p, 100_000, RATES, LINK, overlap=share) for share in (1.0, 0.5, 0.0))
    in_turn_s = apart.server_s + apart.receive_s + apart.recover_s
    assert turns.latency_s == pytest.approx(apart.encrypt_s + apart.send_s + LINK.round_trip_s + in_turn_s)
    assert apart.latency_s < turns.latency_s
    assert half.latency_s == pytest.approx((apart.latency_s + turns.latency_s) / 2)


@pytest.mark.parametrize("pieces", [1, 2, 7, 1000])
def test_overlapping_stages(pieces: int) -> None:
    """Against a simulation: piece k enters a stage when it has left the one before and piece k − 1 has left this."""
    stages = [0.3, 1.1, 0.7]
    done = [0.0] * len(stages)
    for _ in range(pieces):
        start = 0.0
        for number, seconds in enumerate(stages):
            start = done[number] = max(start, done[number]) + seconds / pieces
    assert overlapped([(s, s) for s in stages], pieces) == pytest.approx(done[-1])


def test_the_choice_weighs_the_first_open_against_every_query() -> None:
    parameters, slow = candidates(Profile.EXACT, 512), Link.over(1.25e6, 1e-3)

    def chosen(queries: int) -> Plan:
        return choose(predict(p, 100_000, RATES, slow, queries) for p in parameters)

    plans = [predict(p, 100_000, RATES, slow) for p in parameters]
    assert chosen(1).open_s == min(p.open_s for p in plans)
    assert chosen(10**9).latency_s < 1.1 * min(p.latency_s for p in plans)
    assert chosen(1).stride < chosen(10**9).stride


def test_what_is_not_worth_the_memory_is_not_chosen() -> None:
    usual = predict(Parameters.choose("exact", 512), 1000, RATES, LINK)
    costs = {1: (1.0, 900), 2: (1.05, 500), 4: (1.09, 700), 8: (1.2, 100)}  # seconds, bytes
    plans = [replace(usual, stride=g, cost_s=s, client_memory_bytes=size) for g, (s, size) in costs.items()]
    assert choose(plans).stride == 2
    assert choose([plans[0], plans[3]]).stride == 1


def test_calibration_measures_every_rate() -> None:
    sizes = [Sizes(p, 300) for p in candidates(Profile.COMPACT, 20)]
    for rates in calibrate(sizes, threads=2):
        values = [getattr(rates, name) for name in Rates.__dataclass_fields__]
        assert all(math.isfinite(v) and v >= 0 for v in values)
        assert min(rates.server_bytes_per_s, rates.query_s, rates.build_row_s, rates.open_row_s) > 0


def test_the_command_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--rows", "700", "--dim", "20", "--link-mbps", "100", "--server-gb-s", "10", "--rtt-ms", "0"]
    assert main([*command, "--profile", "compact", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["arguments"]["server_gb_s"] == 10
    strides = {s["stride"]: s for s in fields["strides"]}
    assert sorted(strides) == [1, 2, 4, 8, 16, 32]
    assert strides[fields["chosen"]]["cost_s"] <= 1.1 * min(s["cost_s"] for s in strides.values())
    expected = Sizes(Parameters.choose("compact", 20, 4), 700)
    assert strides[4]["server_disk_bytes"] == expected.stored_bytes
    assert strides[4]["server_s"] == expected.index_bytes / 10e9
    assert strides[4]["send_s"] == expected.query_bytes / 12.5e6


def test_the_command_shows_every_stride_and_marks_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rows", "700", "--dim", "20", "--link-mbps", "100"]) == 0
    text = capsys.readouterr().out
    assert text.count("→") == 1
    (marked,) = [line for line in text.splitlines() if "→" in line]
    assert f"stride {marked.split()[1]}:" in text
    assert "its limit" in text and "segments" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rows", "0", "--dim", "8", "--link-mbps", "1"], "--rows: got '0', expected a whole number"),
        (["--rows", "1e6", "--dim", "8", "--link-mbps", "1"], "--rows: got '1e6'"),
        (["--rows", "9", "--dim", "-8", "--link-mbps", "1"], "--dim: got '-8'"),
        (["--rows", "9", "--dim", "8", "--link-mbps", "0"], "--link-mbps: got '0', expected a number above 0"),
        (["--rows", "9", "--dim", "8", "--link-mbps", "nan"], "--link-mbps: got 'nan'"),
        (["--rows", "9", "--dim", "8", "--link-mbps", "inf"], "--link-mbps: got 'inf'"),
        (["--rows", "9", "--dim", "8", "--link-mbps", "1", "--rtt-ms", "-1"], "--rtt-ms: got '-1'"),
        (["--rows", "9", "--dim", "8", "--link-mbps", "1", "--server-gb-s", "1", "--threads", "1"], "not allowed"),
        (["--rows", "9", "--dim", "8"], "--link-mbps"),
    ],
)
def test_bad_arguments(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_dimension_that_no_collection_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rows", "9", "--dim", "16385", "--link-mbps", "1"]) == 2
    assert "16385" in capsys.readouterr().err


def test_the_model_refuses_what_cannot_be() -> None:
    with pytest.raises(ParameterError):
        candidates(Profile.EXACT, 0)
    with pytest.raises(InvalidInput, match="rows: got 0"):
        Sizes(Parameters.choose("exact", 8), 0)
    for rate, trip in ((0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, -1.0), (1.0, math.nan)):
        with pytest.raises(InvalidInput):
            Link.over(rate, trip)

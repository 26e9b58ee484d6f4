"""`hesearch advise`: what it says for every combination of answers, and what that rests on."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import layers_choice, standing
from benchmarks.markdown import Run
from he_client import cli
from he_client.layers import costs
from he_client.layers.answers import CHOICES, Answers, Engine, Leaves, Operator, Scores
from he_client.layers.catalogue import LAYERS
from he_client.layers.choosing import ORDER, Advice, advise, applying, expected_ms
from he_client.layers.threats import THREATS
from he_client.plan import Link, Plan, Rates, predict
from he_engine.errors import InvalidInput
from he_engine.params import Parameters, Profile
from tests.test_threat_model import NAMED, missing

ROOT = Path(__file__).resolve().parent.parent
RATES = Rates(
    server_bytes_per_s=20e9, client_threads=2, query_s=1e-3, recover_group_s=1e-4, recover_row_s=5e-8,
    derive_row_s=1e-7, build_row_s=1e-5, open_row_s=1e-6,
)  # fmt: skip
ROWS, DIM = 1_000_000, 512
#: Numbers beside the choices: none; every profile is fast enough; `compact` alone is; none is, nor is any that right.
NUMBERED: tuple[dict[str, Any], ...] = (
    {},
    {"rows": ROWS, "dim": DIM, "latency_ms": 5000.0, "recall": 0.995},
    {"rows": ROWS, "dim": DIM, "latency_ms": 170.0},
    {"rows": ROWS, "dim": DIM, "latency_ms": 1.0, "recall": 0.999},
)


@cache
def estimates() -> dict[Profile, Plan]:
    link = Link.over(125e6, 1e-3)
    return {p: predict(Parameters.choose(p, DIM), ROWS, RATES, link) for p in ORDER}


def every_answer() -> Iterator[Answers]:
    for values in itertools.product(*CHOICES.values()):
        for numbers in NUMBERED:
            yield Answers(**dict(zip(CHOICES, values, strict=True)), **numbers)


@cache
def every_advice() -> tuple[Advice, ...]:
    return tuple(advise(a, estimates() if a.rows else None) for a in every_answer())


# ---- what is said for every combination ------------------------------------------------------------------------
def test_every_combination_has_a_result_in_which_every_threat_is_once() -> None:
    assert len(every_advice()) == 4 * 3**3 * 2**7
    for advice in every_advice():
        assert sorted([*advice.covered, *advice.remaining, *advice.aside]) == sorted(THREATS)
        applied = set(applying(advice.answers))
        assert set(advice.remaining) <= applied
        assert not applied & set(advice.aside), "what the answers name is covered, or said to remain"


def test_what_is_covered_is_covered_by_layers_that_are_on() -> None:
    for advice in every_advice():
        for threat in advice.covered:
            assert set(THREATS[threat].by) <= set(advice.reasons)
        assert all(advice.reasons.values())


def test_what_remains_is_what_cannot_be_helped() -> None:
    for advice in every_advice():
        a = advice.answers
        expected = set()
        if a.operator is Operator.HOSTILE:
            expected |= {"unknown", "known", "greedy", "denied", "disk"}
        if a.leaves is Leaves.NOTHING:
            expected |= {"inversion", "aggregator"}
        assert set(advice.remaining) == expected & set(applying(a))


def test_a_hostile_server_gets_no_tenseal_and_protects_from_nothing() -> None:
    for advice in every_advice():
        if advice.answers.operator is Operator.HOSTILE:
            assert advice.engine is Engine.HINT and "lying" in advice.covered
            by = {layer for threat in advice.covered for layer in THREATS[threat].by}
            assert not {layer for layer in by if LAYERS[layer].place.binds_honest_server_only}


def test_approximate_scores_are_shown_to_nobody_else() -> None:
    seen = set()
    for advice in every_advice():
        seen.add((advice.answers.scores, advice.engine, advice.profile))
    assert {(e, p) for s, e, p in seen if s is Scores.EVERYBODY} == {(Engine.HINT, Profile.EXACT)}
    assert {(e, p) for s, e, p in seen if s is Scores.HOLDERS} == {
        (Engine.TENSEAL, Profile.EXACT), *((Engine.HINT, profile) for profile in Profile)
    }  # fmt: skip


def test_the_profile_is_the_first_that_does() -> None:
    for advice in every_advice():
        a = advice.answers
        if advice.engine is Engine.TENSEAL:
            continue
        allowed = [p for p in ORDER if a.scores is Scores.HOLDERS or p is Profile.EXACT]
        right = [p for p in allowed if costs.recall(p) >= (a.recall or 0)]
        wishes = {one.wish for one in advice.unmet}
        assert ("recall@10 of 0.999" in wishes) == (not right)
        times = {p: expected_ms(plan, p, Engine.HINT, frozenset(advice.reasons)) for p, plan in estimates().items()}
        fast = [p for p in right or allowed if a.latency_ms is None or times[p] <= a.latency_ms]
        if right and fast:
            assert advice.profile is fast[0]
        assert (f"a query within {a.latency_ms or 0:g} ms" in wishes) == (a.latency_ms is not None and not fast)
        assert advice.latency_ms == (times[advice.profile] if a.rows else None)


def test_the_numbers_of_these_tests_decide() -> None:
    """Each profile is the choice of some, or the tests above would not see one."""
    of = {scores: {a.profile for a in every_advice() if a.answers.scores is scores} for scores in Scores}
    assert of == {Scores.HOLDERS: set(Profile), Scores.EVERYBODY: {Profile.EXACT}}


def test_a_wish_that_cannot_be_met_says_why_and_what_would() -> None:
    wishes = {one for advice in every_advice() for one in advice.unmet}
    assert all(one.wish and one.because and one.instead for one in wishes)
    assert {one.wish for one in wishes} == {
        "engine tenseal", "recall@10 of 0.999", "a query within 1 ms", "a query within 170 ms",
        "a query within 5000 ms",
        "nothing leaves, and others get vectors", "nothing leaves, and sites train together",
        "nothing leaves, over a network",
        "listed writers, from the command line",
    }  # fmt: skip
    slow = advise(Answers(scores=Scores.EVERYBODY, **NUMBERED[2]), estimates())
    assert "`compact`" in slow.unmet[0].instead and "holders of the key alone" in slow.unmet[0].instead


def test_tenseal_is_refused_where_it_may_not_be_and_only_there() -> None:
    for advice in every_advice():
        a = advice.answers
        if a.engine is Engine.TENSEAL:
            refused = a.operator is Operator.HOSTILE or a.scores is Scores.EVERYBODY
            assert (advice.engine is Engine.HINT) == refused
            assert ("engine tenseal" in {one.wish for one in advice.unmet}) == refused
            assert ("verification" in advice.reasons) == refused
            told = " ".join(one.because + one.instead for one in advice.unmet if one.wish == "engine tenseal")
            assert ("verifies no answer" in told) == (a.operator is Operator.HOSTILE)
            assert ("holders of the key" in told) == (a.scores is Scores.EVERYBODY)


def test_expected_latency_grows_with_layers_and_under_tenseal() -> None:
    plan = estimates()[Profile.EXACT]
    alone = expected_ms(plan, Profile.EXACT, Engine.HINT, frozenset({"verification"}))
    assert alone == pytest.approx(1e3 * plan.latency_s)
    assert expected_ms(plan, Profile.EXACT, Engine.HINT, frozenset(LAYERS)) > alone
    assert expected_ms(plan, Profile.EXACT, Engine.TENSEAL, frozenset()) > alone + 50e3 * plan.server_s


def test_overhead_is_that_of_the_first_measured_set_with_all_layers() -> None:
    for chosen, of in {
        frozenset({"verification", "text"}): ("verification",),
        frozenset({"tls", "identity", "policies", "audit", "verification"}): costs.STEPS[:5],
        frozenset({"tls", "at_rest"}): costs.STEPS,
    }.items():
        ratio, found = costs.overhead(chosen, Profile.PRECISE)
        assert found == of and ratio == costs.overhead(chosen, Profile.EXACT)[0]
        assert ratio.low <= ratio.value <= ratio.high


@pytest.mark.parametrize(
    "wrong",
    [{"rows": 0}, {"dim": 0}, {"dim": 1 << 20}, {"latency_ms": 10.0}, {"latency_ms": 10.0, "rows": 1},
     {"latency_ms": 0.0, "rows": 1, "dim": 1}, {"recall": 1.1}, {"link_mbps": 0.0}, {"rtt_ms": -1.0}],
)  # fmt: skip
def test_numbers_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        Answers(**wrong)


# ---- what it rests on ------------------------------------------------------------------------------------------
def test_every_threat_names_tests_that_exist() -> None:
    tests = [test for threat in THREATS.values() for tests in threat.by.values() for test in tests]
    quoted = " ".join(f"`tests/{test}`" for test in tests)
    assert len(NAMED.findall(quoted)) == len(tests) and not missing(quoted)
    assert all(threat.by and all(threat.by.values()) for threat in THREATS.values())
    assert {layer for threat in THREATS.values() for layer in threat.by} == set(LAYERS)
    assert all((ROOT / "docs" / layer.page).exists() for layer in LAYERS.values())


def test_costs_page_and_figure_are_those_of_the_figures() -> None:
    run = "run `python -m benchmarks.layers_choice`"
    assert layers_choice.COSTS.read_text() == layers_choice.costs(Run(layers_choice.FIGURES)), run
    page = layers_choice.PAGE.read_text()
    assert page == layers_choice.written(page) and layers_choice.rendered() in page, run
    assert layers_choice.PLOT.read_text() == standing.drawing(), run


def test_commands_of_the_page_are_there() -> None:
    parser = cli.build_parser()
    for block in re.findall(r"```sh\n(.*?)```", layers_choice.PAGE.read_text(), re.DOTALL):
        for line in block.splitlines():
            parser.parse_args(shlex.split(line, comments=True)[1:])

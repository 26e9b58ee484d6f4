"""`hesearch advise`: what it says for every combination of answers, and that what it prints works."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import layers_choice, standing
from benchmarks.markdown import Run
from he_client import cli
from he_client.layers import costs
from he_client.layers.answers import CHOICES, NUMBERS, PROFILES, Answers, Callers, Engine, Leaves, Operator, Scores
from he_client.layers.catalogue import LAYERS
from he_client.layers.choosing import ORDER, Advice, advise, applying, expected_ms
from he_client.layers.commands import CONFIG, commands, files
from he_client.layers.threats import THREATS
from he_client.plan import Link, Plan, Rates, predict
from he_engine.errors import InvalidInput
from he_engine.params import Parameters, Profile
from he_server.config import ServerConfig
from he_server.config_file import read_toml
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
    assert len(every_advice()) == 4 * 3 * 3 * 2**8
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
            expected |= {"inversion"}
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
        "nothing leaves, and others get vectors", "nothing leaves, over a network",
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
    for block in re.findall(r"```sh\n(.*?)```", layers_choice.PAGE.read_text(), re.DOTALL):
        for line in block.splitlines():
            cli.build_parser().parse_args(shlex.split(line, comments=True)[1:])


# ---- what it prints --------------------------------------------------------------------------------------------
def test_every_printed_command_parses() -> None:
    lines = {line for advice in every_advice() for run in (commands(advice),) for line in (*run.operator, *run.user)}
    ours = [shlex.split(line.partition(" > ")[0]) for line in lines if line.startswith("hesearch ")]
    assert len(ours) == len(lines) - 1, "and one printf"
    assert {"certs", "policy", "kek", "serve", "backup", "keygen", "create", "search"} <= {words[1] for words in ours}
    for words in ours:
        cli.build_parser().parse_args(words[1:])


def test_every_configuration_is_taken(tmp_path: Path) -> None:
    texts = {tuple(files(advice).items()) for advice in every_advice()}
    assert len(texts) > 10
    for number, found in enumerate(texts):
        path = tmp_path / f"{number}.toml"
        path.write_text(dict(found)[CONFIG])
        values = read_toml(path)
        config = ServerConfig(**values | {"data": Path(values["data"])})
        assert config.insecure is not bool(config.tls_cert)
        assert bool(config.quotas) is (len(found) == 2)


@pytest.mark.parametrize("profile", PROFILES)
def test_print_config_takes_what_is_written(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["advise", "--profile", profile, "--write", "server", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {path.name: path.read_text() for path in (tmp_path / "server").iterdir()} == said["files"]
    assert cli.main(["serve", "--config", "server/hesearch.toml", "--print-config"]) == 0
    assert 'tls_cert = "certs/server.pem"' in capsys.readouterr().out


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quotas.toml").write_text("mine")
    assert cli.main(["advise", "--profile", "regulated", "--write", str(tmp_path)]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["quotas.toml"]
    assert (tmp_path / "quotas.toml").read_text() == "mine"
    assert cli.main(["advise", "--profile", "regulated", "--write", str(tmp_path / "no" / "folder")]) == 3
    assert capsys.readouterr().out == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_asks_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["hostile", "", "no such", "several", *[""] * (len(CHOICES) - 3), *[""] * 5, "0.99"]
    monkeypatch.setattr(sys, "stdin", _Terminal("\n".join(answers[:-2]) + "\n0.99\n"))
    assert cli.main(["advise"]) == 0
    said = capsys.readouterr()
    assert "got 'no such', expected one of one, several" in said.err
    assert "hostile" in said.out and "0.99" in said.out and "not covered" in said.out.lower()


def test_empty_lines_are_the_baseline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal("\n" * (len(CHOICES) + len(NUMBERS))))
    assert cli.main(["advise"]) == 0
    asked = capsys.readouterr().out
    assert cli.main(["advise", "--profile", "baseline"]) == 0
    assert capsys.readouterr().out == asked


def test_answers_that_end_early(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal("hostile\n"))
    assert cli.main(["advise"]) == 2
    assert "network: the answers ended here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--json"], ["--operator", "hostile"], ["--profile", "baseline"], ["--recall", "1"]]
)
def test_with_options_it_never_asks(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal())
    assert cli.main(["advise", *options]) == 0
    assert capsys.readouterr().err == ""


def test_options_change_single_answers_of_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "--profile", "regulated", "--callers", "one", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answers"]["callers"] == Callers.ONE.value and said["answers"]["disk"] == "stolen"
    assert list(said["files"]) == [CONFIG]


def test_a_latency_is_measured_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "--rows", "3000", "--dim", "16", "--latency-ms", "0.001", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["latency_ms"] > 0.001
    assert [one["wish"] for one in said["unmet"]] == ["a query within 0.001 ms"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_serves_a_search_as_printed(profile: str, tmp_path: Path) -> None:
    """Its files and all its commands, but for the address, a passphrase from a file, and `&` after `serve`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HESEARCH_STATE": str(tmp_path / "state")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    advice = advise(PROFILES[profile])
    for name, text in files(advice).items():
        (tmp_path / name).write_text(text.replace("0.0.0.0:50051", f"127.0.0.1:{port}"))
    (tmp_path / "pass.txt").write_text("a long passphrase of ours\n")
    (tmp_path / "notes.csv").write_text("id,note\n1,Anna Meyer called anna@example.org\n")
    (tmp_path / "names.txt").write_text("Anna Meyer\n")
    run = commands(advice)
    at = next(number for number, line in enumerate(run.operator) if " serve " in line)
    lines = [*run.operator[:at], run.operator[at] + " &", *run.user, *run.operator[at + 1 :]]
    lines.insert(0, "trap 'kill $(jobs -p); wait' EXIT")
    lines.insert(1, "python -c \"import numpy as np; v = np.random.default_rng(0).normal(size=(50, 384)); "
                    "np.save('vectors.npy', v); np.save('query.npy', v[7])\"; seq 0 49 > ids.txt")  # fmt: skip
    keyed = re.compile(r"hesearch (keygen|key |create|insert|search)")
    script = "\n".join(
        line.replace("50051", port) + (" --passphrase-file pass.txt" if keyed.match(line) else "") for line in lines
    )
    ran = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^query 0\n +(0\.999|1\.000)\d+  7$", ran.stdout, re.MULTILINE), ran.stdout
    assert {"head.json", "backup", "notes.archive", "shares"} <= {path.name for path in tmp_path.iterdir()}
    if "text" in advice.reasons:
        safe = (tmp_path / "safe.csv").read_text()
        assert "Anna" not in safe and "example.org" not in safe

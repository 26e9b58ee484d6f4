"""The privacy budget: what releases add up to, and that nothing is released that its file does not know of."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from he_client.cli import main
from he_client.protect.dp import BudgetExceeded, GaussianMechanism, PrivacyBudget, release_embeddings
from he_client.protect.dp.calibration import largest_mu
from he_engine.errors import (
    DamagedDataError,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    NotFound,
)
from tests.conftest import unit_rows
from tests.dp_fixture import delta_of

EPSILON, DELTA = 3.0, 1e-6


@pytest.fixture
def budget(tmp_path: Path) -> PrivacyBudget:
    return PrivacyBudget.open(tmp_path / "budget", epsilon=EPSILON, delta=DELTA)


def test_releases_add_up_as_an_accountant_says(budget: PrivacyBudget) -> None:
    """Privacy loss distributions, which know nothing of sums of squares, and are pessimistic by their step."""
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for epsilon, delta, releases in ((0.5, 1e-7, 1), (1.0, 1e-8, 1), (1.2, 1e-6, 9)):
        made = budget.spend(epsilon=epsilon, delta=delta, what="test", releases=releases)
        accountant.compose(SelfComposedDpEvent(GaussianDpEvent(made.noise_multiplier), releases))
    report = budget.report()
    assert report.spent_epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-3)
    assert report.spent_epsilon < 0.5 + 1.0 + 1.2, "less than their sum"
    total = math.sqrt(math.fsum(one.mu**2 for one in report.spendings))
    assert delta_of(report.spent_epsilon, total) == pytest.approx(DELTA, rel=1e-6)
    left = largest_mu(report.left_epsilon, DELTA)
    assert total**2 + left**2 == pytest.approx(largest_mu(EPSILON, DELTA) ** 2, rel=1e-5)
    assert report.spent_share == pytest.approx(total**2 / (total**2 + left**2), rel=1e-5)


def test_the_whole_budget_at_once_and_nothing_after_it(budget: PrivacyBudget) -> None:
    budget.spend(epsilon=EPSILON, delta=DELTA, what="all of it")
    before = budget.path.read_bytes()
    with pytest.raises(BudgetExceeded, match=r"epsilon=0\.01, delta=1e-07 was asked for; epsilon=0 at .* is left of"):
        budget.spend(epsilon=0.01, delta=1e-7, what="more")
    assert budget.path.read_bytes() == before
    assert (budget.report().left_epsilon, budget.report().spent_share) == (0, 1)


def test_what_is_left_can_be_spent(budget: PrivacyBudget) -> None:
    budget.spend(epsilon=1, delta=DELTA, what="first")
    left = budget.report().left_epsilon
    with pytest.raises(BudgetExceeded, match=f"epsilon={left:.4g}"):
        budget.spend(epsilon=left * 1.001, delta=DELTA, what="too much")
    budget.spend(epsilon=left * 0.999, delta=DELTA, what="second")
    assert budget.report().spent_epsilon == pytest.approx(EPSILON, rel=2e-3)


def test_the_same_rows_again_cost_again_and_get_other_noise(budget: PrivacyBudget, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 3, 4)
    first, second = (release_embeddings(rows, epsilon=1, delta=1e-7, budget=budget) for _ in range(2))
    assert not (first == second).any()
    assert [one.what for one in budget.report().spendings] == ["embeddings"] * 2


def test_a_budget_is_what_it_was_made_as(budget: PrivacyBudget, tmp_path: Path) -> None:
    budget.spend(epsilon=1, delta=1e-7, what="one")
    for same in (PrivacyBudget.open(budget.path), PrivacyBudget.open(budget.path, epsilon=3, delta=DELTA)):
        assert len(same.report().spendings) == 1
    with pytest.raises(InvalidInput, match=r"it has epsilon=3\.0, delta=1e-06, and that stays"):
        PrivacyBudget.open(budget.path, epsilon=4, delta=DELTA)
    with pytest.raises(InvalidInput, match="both"):
        PrivacyBudget.open(budget.path, epsilon=3)
    with pytest.raises(NotFound):
        PrivacyBudget.open(tmp_path / "none")
    with pytest.raises(NotFound):
        PrivacyBudget.open(tmp_path / "none" / "budget", epsilon=1, delta=DELTA)
    with pytest.raises(InvalidInput, match="delta"):
        PrivacyBudget.open(tmp_path / "other", epsilon=1, delta=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["budget"]


def test_a_budget_that_is_gone_is_not_made_again(budget: PrivacyBudget) -> None:
    budget.path.unlink()
    for ask in (budget.report, lambda: budget.spend(epsilon=1, delta=1e-7, what="one")):
        with pytest.raises(NotFound):
            ask()
    assert not budget.path.exists()


def test_a_link_leads_to_the_one_budget(budget: PrivacyBudget, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(budget.path)
    PrivacyBudget.open(tmp_path / "link").spend(epsilon=1, delta=1e-7, what="by the link")
    assert len(budget.report().spendings) == 1 and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("what", ["", "a\nb", "x" * 201, 7])
def test_what_is_one_line(budget: PrivacyBudget, what: str) -> None:
    with pytest.raises(InvalidInput, match="what"):
        budget.spend(epsilon=1, delta=1e-7, what=what)
    with pytest.raises(InvalidInput, match="releases"):
        budget.spend(epsilon=1, delta=1e-7, what="x", releases=0)
    assert not budget.report().spendings


def test_every_changed_bit_and_every_cut_is_seen(budget: PrivacyBudget) -> None:
    """But for whole lines from the end, which the document says."""
    for what in ("one", "two"):
        budget.spend(epsilon=0.5, delta=1e-7, what=what)
    whole = budget.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    altered = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    altered += [
        whole[:length] for length in range(len(whole)) if length not in (len(lines[0]), len(whole) - len(lines[2]))
    ]
    altered += [whole + b"x", whole + b"\n", whole + lines[2], lines[0] + lines[2], lines[0] + lines[2] + lines[1]]
    for data in altered:
        budget.path.write_bytes(data)
        with pytest.raises((DamagedDataError, FormatVersionError)):
            budget.spend(epsilon=0.1, delta=1e-7, what="three")
        assert budget.path.read_bytes() == data
    budget.path.write_bytes(whole)
    assert len(budget.report().spendings) == 2


CRASH = """
import os, sys
import numpy as np
from he_client.protect.dp import GaussianMechanism, PrivacyBudget, release_embeddings
GaussianMechanism.release = lambda *a, **k: os._exit(9)
release_embeddings(np.eye(2), epsilon=1, delta=1e-7, budget=PrivacyBudget.open(sys.argv[1]))
"""


def test_a_crash_after_paying_loses_budget_and_no_privacy(budget: PrivacyBudget) -> None:
    ended = subprocess.run([sys.executable, "-c", CRASH, str(budget.path)], timeout=120, check=False)
    assert ended.returncode == 9
    assert [one.epsilon for one in budget.report().spendings] == [1.0]


def test_nothing_is_released_where_the_disk_fails(budget: PrivacyBudget, monkeypatch: pytest.MonkeyPatch) -> None:
    before = budget.path.read_bytes()

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    released: list[object] = []
    monkeypatch.setattr("os.fsync", fails)
    monkeypatch.setattr(GaussianMechanism, "release", lambda *a, **_: released.append(a))
    with pytest.raises(HesearchError, match="No space left"):
        release_embeddings(np.eye(2), epsilon=1, delta=1e-7, budget=budget)
    assert not released and budget.path.read_bytes() == before
    assert [path.name for path in budget.path.parent.iterdir()] == ["budget"]


def _spend(budget: PrivacyBudget, tries: int, done: str) -> None:
    paid = 0
    for _ in range(tries):
        try:
            budget.spend(epsilon=0.4, delta=DELTA, what="one of many")
            paid += 1
        except BudgetExceeded:
            pass
    Path(done).write_text(str(paid))


def test_processes_that_spend_at_once(budget: PrivacyBudget, tmp_path: Path) -> None:
    """As many as one alone could, each in the file."""
    room = int(largest_mu(EPSILON, DELTA) ** 2 / largest_mu(0.4, DELTA) ** 2)
    spawn = multiprocessing.get_context("spawn")
    done = [tmp_path / f"done{i}" for i in range(3)]
    children = [spawn.Process(target=_spend, args=(budget, room, str(path))) for path in done]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sum(int(path.read_text()) for path in done) == len(budget.report().spendings) == room > 20


def test_two_that_make_a_budget_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = PrivacyBudget.open(tmp_path / "b", epsilon=1, delta=DELTA)
    first.spend(epsilon=0.5, delta=1e-7, what="one")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", lambda _: False)  # looked before the first had made it
        second = PrivacyBudget.open(tmp_path / "b", epsilon=1, delta=DELTA)
    assert second == first and len(second.report().spendings) == 1


def test_a_pickled_budget_is_the_same_file(budget: PrivacyBudget) -> None:
    pickle.loads(pickle.dumps(budget)).spend(epsilon=1, delta=1e-7, what="elsewhere")
    assert len(budget.report().spendings) == 1


def test_commands(tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "rows.npy", unit_rows(rng, 5, 8))
    ledger, rows, noisy = (str(tmp_path / name) for name in ("b", "rows.npy", "noisy.npy"))
    release = ["dp", "release", rows, noisy, "--epsilon", "1", "--delta", "1e-6", "--budget", ledger]
    assert main(release) == 3, "no budget yet"
    assert main(["dp", "budget", ledger, "--epsilon", "1", "--delta", "1e-6"]) == 0
    assert "epsilon 1 at delta 1e-06; spent 0, left for one more release 1; 0.0% used" in capsys.readouterr().out
    assert main([*release, "--project", "9"]) == 2
    assert not Path(noisy).exists()
    assert main([*release, "--project", "4", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"noisy": noisy, "rows": 5, "dim": 4, "left_epsilon": 0.0}
    assert np.load(noisy).shape == (5, 4) and np.load(noisy).dtype == np.float32
    assert main(release) == 4, "never overwritten"
    assert main([*release[:3], str(tmp_path / "more.npy"), *release[4:]]) == 10
    assert "is left of epsilon=1" in capsys.readouterr().err
    assert main(["dp", "budget", ledger, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in said["spendings"]] == ["embeddings of 5 rows"]
    assert said["spent_share"] == 1 and not (tmp_path / "more.npy").exists()

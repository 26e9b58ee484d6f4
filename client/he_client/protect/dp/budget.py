"""A privacy budget: (ε, δ) for everything that is ever released of some people's data, kept in a file.

    spend → a line on the disk → noise may be drawn

in this order, so a crash in between loses budget and never privacy. Releases add up as in calibration.py.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from he_client.protect.dp import ledger as files
from he_client.protect.dp.calibration import epsilon_of, largest_mu, require_privacy
from he_client.protect.dp.checks import MOST_RELEASES, require_count
from he_client.protect.dp.gaussian import GaussianMechanism
from he_client.protect.dp.ledger import Ledger, Spending
from he_engine.errors import AlreadyExists, BudgetExceeded, InvalidInput


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """What a budget is, and what of it is spent. Each ε is at the budget's δ."""

    epsilon: float
    delta: float
    spent_epsilon: float  #: all releases so far are together (spent_epsilon, δ)-private
    left_epsilon: float  #: one more release may have this ε
    spent_share: float  #: Σμ² of what was spent over μ² of the budget, 0 to 1
    spendings: tuple[Spending, ...]


@dataclass(frozen=True, slots=True)
class PrivacyBudget:
    """One budget for one group of people. It is the file: objects, threads and processes that open it share it.

    Releases of one budget are taken to concern the same people and add up. Where the same person is in the data of
    two budgets, what holds for them is the sum.
    """

    path: Path  #: use `open`, which makes it and checks it

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, epsilon: float | None = None, delta: float | None = None
    ) -> PrivacyBudget:
        """The budget of a file, which is made where it is missing and ε and δ are given.

        epsilon: ε, 1e-4 to 1e4. delta: δ, 1e-30 to 0.4; well below 1 over the number of people. Raises InvalidInput
        (also where the file's budget is another); NotFound, FormatVersionError, DamagedDataError.
        """
        budget = cls(Path(path).resolve())  # a link stays one: the file that it leads to is replaced
        if (epsilon is None) != (delta is None):
            raise InvalidInput("budget: expected both epsilon and delta, or neither")
        if epsilon is not None and delta is not None:
            require_privacy(epsilon, delta)
            if not budget.path.exists():
                with contextlib.suppress(AlreadyExists):  # somebody else was faster
                    files.create(budget.path, float(epsilon), float(delta))
        ledger = files.read(budget.path)
        if epsilon is not None and (epsilon, delta) != (ledger.epsilon, ledger.delta):
            raise InvalidInput(
                f"budget {path}: got epsilon={epsilon}, delta={delta}; it has epsilon={ledger.epsilon}, "
                f"delta={ledger.delta}, and that stays"
            )
        return budget

    def spend(self, *, epsilon: float, delta: float, what: str, releases: int = 1) -> GaussianMechanism:
        """Pays for `releases` releases that are together (ε, δ)-private. It is on the disk when this returns.

        releases: 1 to 2^20. what: for who reads the file, 1 to 200 characters; it is stored in the clear. Raises
        InvalidInput; BudgetExceeded, and nothing is spent; NotFound, FormatVersionError, DamagedDataError,
        HesearchError (the disk).
        """
        files.require_what(what)
        require_count("releases", releases, MOST_RELEASES)
        mu = largest_mu(epsilon, delta)
        mechanism = GaussianMechanism(mu, releases)
        with files.locked(self.path):
            ledger = files.read(self.path)
            if math.fsum([_spent(ledger), mu * mu]) > largest_mu(ledger.epsilon, ledger.delta) ** 2:
                raise BudgetExceeded(_refusal(self.path, _report(ledger), epsilon, delta))
            at = datetime.now(UTC).isoformat(timespec="seconds")
            files.add(self.path, ledger, Spending(at, what, float(epsilon), float(delta), mu))
        return mechanism

    def report(self) -> BudgetReport:
        """Raises NotFound, FormatVersionError, DamagedDataError, MissingExtra."""
        return _report(files.read(self.path))


def _spent(ledger: Ledger) -> float:
    return math.fsum(one.mu * one.mu for one in ledger.spendings)


def _report(ledger: Ledger) -> BudgetReport:
    allowed, spent = largest_mu(ledger.epsilon, ledger.delta) ** 2, _spent(ledger)
    return BudgetReport(
        ledger.epsilon,
        ledger.delta,
        epsilon_of(math.sqrt(spent), ledger.delta),
        epsilon_of(math.sqrt(max(0.0, allowed - spent)), ledger.delta),
        spent / allowed,
        ledger.spendings,
    )


def _refusal(path: Path, report: BudgetReport, epsilon: float, delta: float) -> str:
    return (
        f"budget {path}: epsilon={epsilon:g}, delta={delta:g} was asked for; epsilon={report.left_epsilon:.4g} at "
        f"delta={report.delta:g} is left of epsilon={report.epsilon:g} (spent: {report.spent_share:.1%}). Nothing was "
        "released"
    )

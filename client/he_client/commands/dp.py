"""`hesearch dp`: noisy embeddings for a price, and the budget that it is paid from."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np

from he_client.commands.argument_types import positive, whole
from he_client.commands.common import Subparsers, add_command, counted, report
from he_client.durable import new_file
from he_client.files import read_table
from he_client.protect.dp import BudgetReport, PrivacyBudget, public_projection, release_embeddings
from he_engine.errors import AlreadyExists, InvalidInput

_BUDGET = "patients.budget --epsilon 3 --delta 1e-6"
_RELEASE = "vectors.npy noisy.npy --epsilon 1 --delta 1e-7 --budget patients.budget"


def add_dp(subparsers: Subparsers) -> None:
    text = "differential privacy: embeddings with noise, paid from a budget"
    parser = subparsers.add_parser(
        "dp", help=text, description=text,
        epilog=f"examples:\n  hesearch dp budget {_BUDGET}\n  hesearch dp release {_RELEASE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_release(verbs)
    _add_budget(verbs)


def _add_release(verbs: Subparsers) -> None:
    parser = add_command(verbs, "release", _release, "write a file of the rows with noise; the budget pays first", "")
    parser.epilog = f"examples:\n  hesearch dp release {_RELEASE}\n  hesearch dp release {_RELEASE} --project 64"
    parser.add_argument("vectors", type=Path, help=".npy, .npz, .csv or .parquet")
    parser.add_argument("noisy", type=Path, help="where to write them (.npy, float32); never overwritten")
    parser.add_argument("--epsilon", type=positive, required=True, help="of this release")
    parser.add_argument("--delta", type=positive, required=True, help="of this release")
    parser.add_argument("--budget", type=Path, required=True, metavar="FILE", help="`hesearch dp budget` makes one")
    parser.add_argument("--clip", type=positive, default=1.0, metavar="C", help="longer rows are scaled down to C (1)")
    parser.add_argument(
        "--rows-per-person", type=whole, default=1, metavar="M", help="the most rows of one person in the file (1)"
    )
    parser.add_argument("--project", type=whole, metavar="K", help="to K dimensions first, by a public projection")


def _release(arguments: argparse.Namespace) -> int:
    if arguments.noisy.suffix != ".npy":
        raise InvalidInput(f"{arguments.noisy}: got the ending {arguments.noisy.suffix!r}, expected .npy")
    if arguments.noisy.exists():
        raise AlreadyExists(f"{arguments.noisy}: exists; releases are never overwritten")
    budget = PrivacyBudget.open(arguments.budget)
    vectors = read_table(arguments.vectors).vectors
    projection = None
    if arguments.project is not None:
        projection = public_projection(vectors.shape[-1] if vectors.ndim else 0, arguments.project)
    with new_file(arguments.noisy, "release", replace=False) as file:  # before it is paid for
        noisy = release_embeddings(
            vectors, epsilon=arguments.epsilon, delta=arguments.delta, budget=budget, clip_norm=arguments.clip,
            rows_per_person=arguments.rows_per_person, projection=projection,
            what=f"embeddings of {counted(len(vectors), 'row')}",
        )  # fmt: skip
        np.save(file, noisy)
    left = budget.report().left_epsilon
    text = f"wrote {arguments.noisy}: {counted(len(noisy), 'row')} × {noisy.shape[1]}; left: epsilon {left:.4g}"
    fields = {"noisy": str(arguments.noisy), "rows": len(noisy), "dim": noisy.shape[1], "left_epsilon": left}
    return report(arguments, fields, text)


def _add_budget(verbs: Subparsers) -> None:
    parser = add_command(verbs, "budget", _budget, "make a budget, or say what was spent of one and what is left", "")
    parser.epilog = f"examples:\n  hesearch dp budget {_BUDGET}\n  hesearch dp budget patients.budget"
    parser.add_argument("budget", type=Path, help="its file; with --epsilon and --delta it is made where it is missing")
    parser.add_argument("--epsilon", type=positive, help="of everything that is ever released on it")
    parser.add_argument("--delta", type=positive, help="likewise; well below 1 over the number of people")


def _budget(arguments: argparse.Namespace) -> int:
    found = PrivacyBudget.open(arguments.budget, epsilon=arguments.epsilon, delta=arguments.delta).report()
    return report(arguments, asdict(found), _text(arguments.budget, found))


def _text(path: Path, found: BudgetReport) -> str:
    lines = [
        f"{path}: epsilon {found.epsilon:g} at delta {found.delta:g}; spent {found.spent_epsilon:.4g}, left for one "
        f"more release {found.left_epsilon:.4g}; {found.spent_share:.1%} used",
        *(f"  {one.at}  epsilon {one.epsilon:g}  delta {one.delta:g}  {one.what}" for one in found.spendings),
    ]
    return "\n".join(lines)

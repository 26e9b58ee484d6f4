"""`hesearch advise`: asks who may be hostile, where data may go, sizes and wishes, and prints what to run."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from he_client.commands.argument_types import add_threads, not_negative, positive, whole
from he_client.commands.common import Subparsers, add_command, report
from he_client.durable import file_errors
from he_client.layers.answers import CHOICES, NUMBERS, PROFILES, QUESTIONS, Answers, Network
from he_client.layers.choosing import ORDER, advise
from he_client.layers.commands import files
from he_client.layers.telling import to_json, to_text
from he_client.plan import GRPC_BYTES_PER_S, Link, Plan, Sizes, predict
from he_engine.errors import AlreadyExists, InvalidInput
from he_engine.params import Parameters, Profile

_TYPES = {
    "rows": whole, "dim": whole, "latency_ms": positive, "link_mbps": positive, "rtt_ms": not_negative,
    "recall": not_negative,
}  # fmt: skip
_BASELINE = Answers()


def add_advise(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "advise", _advise,
        "which layers to switch on: against whom, at what cost, what remains, and the commands",
        "                                                   (asks)\n"
        "  hesearch advise --profile regulated --write ./server\n"
        "  hesearch advise --operator hostile --scores holders --rows 1000000 --dim 768 --latency-ms 200",
    )  # fmt: skip
    parser.add_argument("--profile", choices=PROFILES, help="answers to begin with; other options change single ones")
    for name, kind in CHOICES.items():
        parser.add_argument(
            f"--{name}", choices=[one.value for one in kind],
            help=f"{QUESTIONS[name]} (default: {getattr(_BASELINE, name).value})",
        )  # fmt: skip
    for name in NUMBERS:
        default = getattr(_BASELINE, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=_TYPES[name], metavar="X",
            help=QUESTIONS[name] + ("" if default is None else f" (default: {default:g})"),
        )  # fmt: skip
    add_threads(parser)
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="write the configuration there; what is there is not overwritten"
    )


def _advise(arguments: argparse.Namespace) -> int:
    given = {name: value for name in (*CHOICES, *NUMBERS) if (value := getattr(arguments, name)) is not None}
    asks = not given and arguments.profile is None and not arguments.json and sys.stdin.isatty()
    answers = _asked() if asks else _given(arguments.profile, given)
    advice = advise(answers, _estimates(answers, arguments.threads))
    if arguments.write is not None:
        _write(arguments.write, files(advice))
    return report(arguments, to_json(advice), to_text(advice))


def _given(profile: str | None, given: dict[str, Any]) -> Answers:
    chosen: dict[str, Any] = {name: CHOICES[name](value) if name in CHOICES else value for name, value in given.items()}
    return replace(PROFILES[profile or "baseline"], **chosen)


# ---- questions -------------------------------------------------------------------------------------------
def _asked() -> Answers:
    """Asks on the terminal; an empty line takes the default. Raises InvalidInput where the answers end early."""
    answers: dict[str, Any] = {}
    for name, kind in CHOICES.items():
        values = [one.value for one in kind]
        default = getattr(_BASELINE, name)
        text = _answer(name, f"{', '.join(values)} [{default.value}]", partial(_one_of, values))
        answers[name] = default if text is None else kind(text)
    for name in NUMBERS:
        if name == "latency_ms" and None in (answers["rows"], answers["dim"]):
            continue
        default = getattr(_BASELINE, name)
        value = _answer(name, "not said" if default is None else f"[{default:g}]", _TYPES[name])
        answers[name] = default if value is None else value
    return Answers(**answers)


def _one_of(values: list[str], text: str) -> str:
    if text not in values:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one of {', '.join(values)}")
    return text


def _answer(name: str, choices: str, kind: Any) -> Any:
    """What `kind` makes of a line, asked until it takes one; None for an empty line."""
    while True:
        print(f"{QUESTIONS[name]}\n  {choices}: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise InvalidInput(f"{name}: the answers ended here")
        if not line.strip():
            return None
        try:
            return kind(line.strip())
        except argparse.ArgumentTypeError as error:
            print(f"  {error}", file=sys.stderr)


# ---- the estimate, and files -----------------------------------------------------------------------------
def _estimates(answers: Answers, threads: int) -> dict[Profile, Plan]:
    """A query at each profile's default stride, with this machine's rates; none without rows and dim."""
    if answers.rows is None or answers.dim is None:
        return {}
    from he_client.calibrate import calibrate  # a server's kernel, which few other commands need

    sizes = [Sizes(Parameters.choose(profile, answers.dim), answers.rows) for profile in ORDER]
    machine = answers.network is Network.MACHINE
    link = Link.over(GRPC_BYTES_PER_S, 0.0) if machine else Link.over(answers.link_mbps * 1e6 / 8, answers.rtt_ms / 1e3)
    print("measuring this machine at three profiles, some seconds …", file=sys.stderr)
    rates = calibrate(sizes, threads)
    return {p: predict(s.parameters, s.rows, r, link) for p, s, r in zip(ORDER, sizes, rates, strict=True)}


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Raises AlreadyExists before anything is written, and NotFound."""
    if there := [name for name in texts if (folder / name).exists()]:
        raise AlreadyExists(f"{folder / there[0]}: exists; nothing was written")
    with file_errors(folder, "folder"):
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)

"""Advice as text, and as one object for machines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

from he_client.layers import costs
from he_client.layers.answers import CHOICES, NUMBERS, QUESTIONS
from he_client.layers.catalogue import LAYERS
from he_client.layers.choosing import Advice
from he_client.layers.commands import commands, files
from he_client.layers.reasons import nothing_more
from he_client.layers.threats import THREATS

WIDTH = 116


def to_json(advice: Advice) -> dict[str, Any]:
    run = commands(advice)
    return {
        "answers": {name: _plain(getattr(advice.answers, name)) for name in (*CHOICES, *NUMBERS)},
        "engine": advice.engine.value,
        "profile": advice.profile.value,
        "layers": [
            {"id": layer, "title": LAYERS[layer].title, "why": why, "cost": costs.note(layer, advice.profile)}
            for layer, why in advice.reasons.items()
        ],
        "covered": [
            {"id": id_, "title": THREATS[id_].title, "layers": list(THREATS[id_].by), "left": THREATS[id_].left}
            for id_ in advice.covered
        ],
        "remaining": [{"id": id_, "title": THREATS[id_].title, "why": why} for id_, why in advice.remaining.items()],
        "set_aside": [{"id": id_, "title": THREATS[id_].title} for id_ in advice.aside],
        "never": list(nothing_more(advice.answers)),
        "unmet": [{"wish": one.wish, "because": one.because, "instead": one.instead} for one in advice.unmet],
        "overhead": {
            "ratio": advice.overhead.value,
            "low": advice.overhead.low,
            "high": advice.overhead.high,
            "layers": list(advice.overhead_of),
        },
        "latency_ms": advice.latency_ms,
        "files": files(advice),
        "commands": {"operator": list(run.operator), "user": list(run.user)},
    }


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def to_text(advice: Advice) -> str:
    run = commands(advice)
    sections = {
        "Answers": _answers(advice),
        "Layers, from the text to the disk": _layers(advice),
        "Covered, and what is left": (f"{THREATS[i].title}: {THREATS[i].left}" for i in advice.covered),
        "Not covered": (f"{THREATS[i].title}: {why}" for i, why in advice.remaining.items()),
        "Set aside by your answers": (THREATS[i].title for i in advice.aside),
        "No layer protects": nothing_more(advice.answers),
        "Cannot be met": (f"{one.wish}: {one.because}. What would: {one.instead}" for one in advice.unmet),
        "Expected of a query": _expected(advice),
    }
    lines = []
    for title, points in sections.items():
        body = [line for point in points for line in _point(point)]
        lines += [title, *body, ""] if body else []
    for name, text in files(advice).items():
        lines += [name, *(f"  {line}" for line in text.splitlines()), ""]
    lines += ["On the server's machine, in the folder of these files", *(f"  {line}" for line in run.operator), ""]
    lines += ["Where the vectors are", *(f"  {line}" for line in run.user)]
    if advice.answers.authenticated:
        lines += ["", *_point("`certs dev` is for trying it out: docs/operations.md has certificates that stay", "")]
    return "\n".join(lines)


def _point(text: str, mark: str = "  * ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False)


def _answers(advice: Advice) -> Iterable[str]:
    for name in (*CHOICES, *NUMBERS):
        if (value := getattr(advice.answers, name)) is not None:
            yield f"{QUESTIONS[name]}: {_plain(value)}"


def _layers(advice: Advice) -> Iterator[str]:
    for layer, why in advice.reasons.items():
        yield f"{LAYERS[layer].title}: {why} ({costs.note(layer, advice.profile)})"


def _expected(advice: Advice) -> Iterator[str]:
    over, at = advice.overhead, costs.costs()["at"]
    yield (
        f"with {', '.join(LAYERS[layer].title for layer in advice.overhead_of)}: × {over.value:.3f} of one without any "
        f"(95 %: {over.low:.3f} to {over.high:.3f}), measured with the engine hint at {at['rows']:,} × {at['dim']}, "
        "client and server on one machine, where the layers weigh most"
    )
    if advice.latency_ms is not None:
        yield (
            f"{advice.latency_ms:.3g} ms of {advice.answers.rows:,} × {advice.answers.dim}, by the model of `hesearch "
            "plan` with the rates of this machine, which stands for both sides"
        )

"""How many planted identifiers survive redaction, how much else it takes, and what protecting texts costs.

    python -m benchmarks.redaction --json docs/figures/redaction.json
    python -m benchmarks.redaction --render docs/figures/redaction.json      the tables of docs/text.md

On synthetic notes (benchmarks/notes.py). An identifier is found when all of its letters and digits are replaced,
under whichever label; else it survives, also in part. A replacement is right when it touches a planted identifier.
Intervals are Wilson's, of 95 %: they are about more notes of this generator, not about notes of other people.

JSON keys (stable): `recall`: by configuration and entity, {planted, found, forms: {form: [planted, found]}};
`precision`: by configuration and label, {replaced, right}; `texts_per_s` by configuration; `characters` a text;
`costs`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, print_json
from benchmarks.markdown import Figures, command, table
from benchmarks.notes import FAMILY, GIVEN, Note, notes
from he_client.progress import progress_bar
from he_client.protect.text import (
    IdCipher,
    Pipeline,
    PseudonymKey,
    Pseudonyms,
    Recognisers,
    Redact,
    SaltedHash,
    Vault,
    VaultKey,
)

EVERYBODY = [f"{given} {family}" for given in GIVEN for family in FAMILY]
CONFIGURATIONS: dict[str, tuple[str, Callable[[], Recognisers]]] = {
    "patterns": ("patterns alone", Recognisers),
    "patterns_any_score": ("patterns alone, min_score = 0", lambda: Recognisers(min_score=0)),
    "names": ("with the full names of all", lambda: Recognisers(EVERYBODY)),
    "names_80": ("with the full names of 80 %", lambda: Recognisers([n for i, n in enumerate(EVERYBODY) if i % 5])),
    "names_parts": (
        "with full, given and family names of all",
        lambda: Recognisers([*EVERYBODY, *GIVEN, *FAMILY]),
    ),
}
COMPARED = ("recognisers", "recall, names", "precision, names", "recall, all", "precision, all", "texts/s")
VAULT_SIZES = (0, 10_000, 100_000)
COMMIT = 1000  #: new values at a time


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    if not total:
        return 0.0, 1.0
    z, p = 1.959964, right / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    return max(0.0, (middle - half) / (1 + z * z / total)), min(1.0, (middle + half) / (1 + z * z / total))


def evaluate(recognisers: Recognisers, texts: Sequence[Note], advance: Callable[[int], None]) -> Figures:
    pipeline = Pipeline([Redact(*sorted(recognisers.entities))], recognisers)
    forms: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    replaced: Counter[str] = Counter()
    right: Counter[str] = Counter()
    spent = 0.0
    for note in texts:
        began = time.perf_counter()
        spans = pipeline.find(note.text)
        spent += time.perf_counter() - began
        gone = {i for span in spans for i in range(span.start, span.end)}
        for p in note.planted:
            count = forms[p.entity][p.form]
            count[0] += 1
            count[1] += all(i in gone for i in range(p.start, p.end) if note.text[i].isalnum())
        for span in spans:
            replaced[span.entity] += 1
            right[span.entity] += any(span.start < p.end and p.start < span.end for p in note.planted)
        advance(1)
    return {
        "recall": {
            entity: {
                "planted": sum(planted for planted, _ in by_form.values()),
                "found": sum(found for _, found in by_form.values()),
                "forms": dict(sorted(by_form.items())),
            }
            for entity, by_form in sorted(forms.items())
        },
        "precision": {label: {"replaced": replaced[label], "right": right[label]} for label in sorted(replaced)},
        "texts_per_s": len(texts) / spent,
    }


def _each_s(run: Callable[[int], object], count: int) -> float:
    """Seconds a call, of the calls 0 to count − 1."""
    began = time.perf_counter()
    for number in range(count):
        run(number)
    return (time.perf_counter() - began) / count


def costs() -> Figures:
    key = PseudonymKey.generate()
    pseudonyms, cipher, salted = Pseudonyms(key, "mrn"), IdCipher(key, "mrn"), SaltedHash.generate("mrn")
    ids = [f"{10_000_000 + number}" for number in range(20_000)]
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder:
        vault = Vault.create(Path(folder) / "vault", VaultKey.generate())
        commits = {}
        for size in VAULT_SIZES:
            if len(vault) < size:
                vault.tokens("MRN", [f"{number:08}" for number in range(len(vault), size)])
            took = _each_s(lambda _: vault.tokens("MRN", [f"new {len(vault) + i}" for i in range(COMMIT)]), 5)
            commits[str(size)] = {"commit_s": took, "file_bytes": (Path(folder) / "vault").stat().st_size}
        (token,) = vault.tokens("MRN", ["new 0"])
        text = f"A note of the usual length, about {token}, who was seen by {token} and left. " * 3
        return {
            "pseudonym_s": _each_s(lambda n: pseudonyms.of(ids[n]), len(ids)),
            "id_cipher_s": _each_s(lambda n: cipher.of(ids[n]), len(ids)),
            "salted_hash_s": _each_s(lambda n: salted.of(ids[n]), 10),
            "vault_commit": commits,
            "reveal_s": _each_s(lambda _: vault.reveal(text), 5000),
        }


def measure(arguments: argparse.Namespace) -> Figures:
    texts = list(notes(arguments.notes, arguments.seed))
    figures: dict[str, Any] = {
        "machine": describe(),
        "arguments": {"notes": arguments.notes, "seed": arguments.seed},
        "characters": sum(len(note.text) for note in texts) / len(texts),
        "recall": {},
        "precision": {},
        "texts_per_s": {},
    }
    with progress_bar(None, len(texts) * len(CONFIGURATIONS), "redact", "texts") as advance:
        for name, (_, make) in CONFIGURATIONS.items():
            for what, value in evaluate(make(), texts, advance).items():
                figures[what][name] = value
    return figures | {"costs": costs()}


# ---- the tables ------------------------------------------------------------------------------------------
def _share(right: int, total: int) -> str:
    low, high = wilson(right, total)
    return f"{right / total:.3f} ({low:.3f}–{high:.3f})" if total else "–"


def _all(counts: dict[str, dict[str, Any]], *names: str) -> list[int]:
    return [sum(one[name] for one in counts.values()) for name in names]


def render(figures: Figures) -> str:
    """Markdown: each kind under `patterns`, the configurations beside each other, and what things cost."""
    recall, precision = figures["recall"], figures["precision"]
    kinds = []
    for entity, one in recall["patterns"].items():
        survive = [
            f"{form} ({found} of {planted})" for form, (planted, found) in one["forms"].items() if found < planted
        ]
        label = precision["patterns"].get(entity, {"right": 0, "replaced": 0})
        kinds.append([
            f"`{entity}`", f"{one['planted']:,}", _share(one["found"], one["planted"]),
            _share(label["right"], label["replaced"]), ", ".join(survive) or "none",
        ])  # fmt: skip
    configurations = [
        [
            title,
            _share(recall[name]["PERSON"]["found"], recall[name]["PERSON"]["planted"]),
            _share(*(precision[name].get("PERSON", {"right": 0, "replaced": 0})[key] for key in ("right", "replaced"))),
            _share(*_all(recall[name], "found", "planted")),
            _share(*_all(precision[name], "right", "replaced")),
            f"{figures['texts_per_s'][name]:.0f}",
        ]
        for name, (title, _) in CONFIGURATIONS.items()
    ]
    c = figures["costs"]
    machine = figures["machine"]
    lines = [
        *table(("kind", "planted", "recall", "precision", "what survives (found of planted)"), kinds),
        *table(COMPARED, configurations),
        *table(
            ("cost", ""),
            [
                ["pseudonym (HMAC-SHA-256), µs", f"{c['pseudonym_s'] * 1e6:.0f}"],
                ["pseudonym that keeps its format (FF1, 8 digits), µs", f"{c['id_cipher_s'] * 1e6:.0f}"],
                ["salted hash (Argon2id), ms", f"{c['salted_hash_s'] * 1e3:.0f}"],
                *(
                    [f"vault of {int(size):,}: {COMMIT:,} new values stored, ms", f"{one['commit_s'] * 1e3:.0f}"]
                    for size, one in c["vault_commit"].items()
                ),
                ["note with six tokens revealed, µs", f"{c['reveal_s'] * 1e6:.0f}"],
            ],
        ),
        f"`{command('redaction', figures['arguments'])}`; {figures['characters']:.0f} characters a note; "
        f"{machine['cpu']}, one thread.",
    ]  # fmt: skip
    return "\n".join(lines).strip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.redaction", description="Which identifiers survive.")
    parser.add_argument("--notes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--render", type=Path, metavar="JSON", help="print the tables of these figures; measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.render:
        print(render(json.loads(arguments.render.read_text())), end="")
    else:
        print_json(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

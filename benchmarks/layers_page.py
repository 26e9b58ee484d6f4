"""docs/overhead.md, from the figures of benchmarks.layers: nothing in it is typed by hand but what the rows mean.

python -m benchmarks.layers_page build/bench build/bench/overhead.md
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.layers import GOAL, GOAL_STEP
from benchmarks.markdown import FOLDER, Figures, Run, commands, ms, number, picture, table
from benchmarks.report import machine

PROFILES = ("exact", "compact")
#: Rows, and what each adds to the row before.
TITLES = {
    "plain": "none of them",
    "tls": "+ TLS 1.3",
    "identity": "+ identity, by certificate",
    "policies": "+ policies",
    "audit": "+ audit log",
    "verification": "+ verification",
    "quotas": "+ quotas",
    "at_rest": "+ encryption at rest",
    "observing": "+ metrics, log, traces",
    "token": "TLS and identity, by token",
    "verification_alone": "verification alone",
}
WORK = """
* **TLS 1.3.** Query and answer are sealed by one side and opened by the other. The handshake is one of each
  connection, not of each query.
* **Identity.** The caller's certificate is read once and kept; at each call the server looks whether it is still
  valid. A token is sent with every call, and its signature checked each time.
* **Policies.** One decision of Cedar, by the ready roles. Decisions are kept, so a search like an earlier one is
  looked up.
* **Audit log.** One line, hashed into the chain, written and synced. It is on its way while the query comes in and is
  computed; no part of the answer leaves before it is on the disk ([audit.md](audit.md)).
* **Verification.** The client derives secret weights for every residue of the answer and compares their sum with that
  of query and fingerprint ([scheme.md](scheme.md), section 4), a group of segments at a time, while later ones
  arrive. Nothing is decrypted before. Its work and that of TLS grow with the rows; the others' does not.
* **Quotas.** Calls, queries and bytes are counted in memory; the file that makes them last is written once in a
  hundredth of a quota.
* **Encryption at rest.** Indexes are decrypted when the server starts, and searched in memory like others. Lines of
  the audit log are sealed as well.
* **Metrics, log, traces.** Counters, a line of JSON on stderr, and a span for the call and its scan, sent to a
  collector in the background.
""".strip().splitlines()


def _range(figures: Figures, key: str, form: str, scale: float = 1) -> str:
    return " to ".join(number(figures[f"{key}_{end}"], form, scale) for end in ("low", "high"))


def verdict(f: Figures) -> str:
    """Whether this run met the goal."""
    step = f["steps"][GOAL_STEP]
    said = "met" if step["ratio_to_plain"] <= GOAL else "missed"
    if step["ratio_to_plain_low"] <= GOAL < step["ratio_to_plain_high"]:
        said += " in the median, and the interval has the goal in it"
    return (
        f"* `{f['arguments']['profile']}`: {number(step['ratio_to_plain'], '.3f')} "
        f"({_range(step, 'ratio_to_plain', '.3f')}): **{said}**."
    )


def _rows(figures: Figures) -> list[list[str]]:
    return [
        [
            TITLES[name], number(f["median_s"], ".1f", 1e3), number(f["added_s"], "+.2f", 1e3),
            _range(f, "added_s", "+.2f", 1e3), number(f["ratio_to_plain"], ".3f"),
            _range(f, "ratio_to_plain", ".3f"),
        ]
        for name, f in figures.items()
    ]  # fmt: skip


def _profile(f: Figures) -> list[str]:
    header = ["", "query, ms", "added, ms", "95 %", "÷ none of them", "95 %"]
    return [
        f"## `{f['arguments']['profile']}`",
        "",
        f"A query of {f['query_bytes'] / 1e3:,.0f} KB, an answer of {f['answer_bytes'] / 1e3:,.0f} KB. Each row has "
        "what those above it have, and *added* is its difference to the row above: they add up to the last row's time.",
        *table(header, _rows(f["steps"])),
        "Beside that, by token instead of the certificate (added to TLS alone), and verification with no other layer:",
        *table(header, _rows(f["variants"])),
        f"The check itself takes {ms(f['verification_work_s'])} ms of processor time a query, on all threads together, "
        f"where a whole query takes {ms(f['steps'][GOAL_STEP]['median_s'])} ms.",
        "",
    ]


def render(folder: Path, link: str) -> str:
    """Markdown. `link`: from where it will be to the folder of plots."""
    try:
        body = _body(Run(folder))
    except FileNotFoundError as error:
        body = [f"Not measured in this run: {Path(error.filename or str(error)).name} is missing."]
    lines = ["# What the layers around a search cost", "", *(line.replace(FOLDER, link) for line in body)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _body(run: Run) -> list[str]:
    """Raises FileNotFoundError."""
    runs = run.found(*(f"layers_{profile}" for profile in PROFILES))
    a = next(iter(runs.values()))["arguments"]
    hits = sum(f["identical_hits"] for f in runs.values())
    return [
        "Written by `make bench` from the figures of benchmarks.layers. What the *encryption* of a search costs beside "
        "plaintext is in [benchmarks.md](benchmarks.md); here both sides are encrypted, and the layers around that are "
        "switched on one after the other.",
        "",
        f"**The goal:** with TLS, policies, audit log and verification, a query costs at most {number(GOAL)} times "
        f"what it costs without them, {a['rows']:,} × {a['dim']}. Identities come with policies, and count. In this "
        "run, with 95 % intervals:",
        "",
        *map(verdict, runs.values()),
        *picture("layers"),
        "",
        *(line for f in runs.values() for line in _profile(f)),
        "## What each layer does for a query",
        "",
        *WORK,
        "",
        "## How it was measured",
        "",
        "A server process for each set of layers, with the same segments in each, and a client of its own; whole "
        f"searches of one vector, k = 10, over gRPC on loopback, with warm caches, {a['threads']} computing "
        f"thread{'s'[: a['threads'] - 1]} a server. They take turns, {a['rounds']} rounds in the same order; a time "
        "is a median of the rounds, an interval 95 % of bootstraps over the rounds (the same draws for every row, so "
        "that what slows a whole round down counts for little). The intervals do not have in them what differs between "
        "server processes, such as where their memory lies: one that is below zero is no gain, but shows how much that "
        f"is. Before the rounds, {hits:,} hits were compared with those without any layer: the same, with "
        "bit-identical scores under `exact`. Client and servers share the machine, and the network has no delay: where "
        "it has, all of this is a smaller part.",
        "",
        "Clients always verify, and no option turns that off. For the rows without it, the benchmark puts nothing in "
        "the place of the one check, in its own process; lengths, places and ranges of residues are checked in every "
        "row. `hesearch serve` does not serve TLS without identities and policies, either; for these rows "
        "benchmarks.layer_server leaves them out.",
        "",
        *(line.removeprefix("* ") for line in machine(run, "layers_")),
        "",
        *commands("layers", runs.values()),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers_page", description="docs/overhead.md.")
    parser.add_argument("folder", type=Path, help="the JSON files and plots")
    parser.add_argument("output", type=Path, nargs="?", default=Path("docs/overhead.md"), help="default: %(default)s")
    arguments = parser.parse_args()
    link = os.path.relpath(arguments.folder, arguments.output.parent)
    arguments.output.write_text(render(arguments.folder, Path(link).as_posix()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

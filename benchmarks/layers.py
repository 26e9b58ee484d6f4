"""What the layers around a search cost: a whole query while one layer after the other is switched on.

    python -m benchmarks.layers --rows 100000 --dim 512 --profile exact --rounds 201 --json out.json

A server process for each set of layers, all with the same segments (inserted once, exported and imported), and a client
for each that asks one query, k = 10, over gRPC on loopback; nobody else is asked meanwhile. They take turns, in the
same order in every round, all with the same query in one round. First correctness: the hits must be the same
everywhere, with bit-identical scores under `exact`, and within their error otherwise.

Clients always verify answers. Without `verification`, this benchmark puts nothing in the place of that one check in its
own process (`unchecked`); lengths, places and ranges of what comes are checked all the same. The command line does not
serve TLS without identities and policies; `benchmarks.layer_server` does.

JSON keys (stable): `machine`, `arguments`; `steps`: name → what was measured with this layer and all before it, of
which the first, `plain`, has none; `variants`, the same for other sets. Each has `layers`, `median_s`, `minimum_s`,
`maximum_s`, `ratio_to_plain`, `added_s` (its median less that of `base`), and of the last two `…_low` and `…_high`:
95 % of bootstraps over the rounds. `ratio_goal` (of GOAL_STEP), `ratio_all` (of the last step), `verification_work_s`
(processor time of the check, a query, all threads), `query_bytes`, `answer_bytes`, `identical_hits` (how many were
compared with those of `plain`).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.layer_stack import Stack
from benchmarks.machine import describe, print_json
from benchmarks.overhead import make_data
from benchmarks.timing import alternate
from he_client import Client, Collection, CollectionKey, Hit
from he_engine.hint_client import HintClient
from he_engine.params import Parameters

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
K = 10
NAME = "c"
#: In the order in which they are switched on; the goal is about the first of them.
LAYERS = ("tls", "identity", "policies", "audit", "verification", "quotas", "at_rest", "observing")
GOAL_STEP = "verification"  #: up to there
GOAL = 1.15  #: × the time without any
RESAMPLES = 1000
STANDARD_DEVIATIONS = 8  #: by which the scores of two queries, encrypted anew, may differ


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a name, the layers that are on, and what `added_s` compares with."""

    name: str
    layers: frozenset[str]
    base: str


STEPS = (
    Subject("plain", frozenset(), "plain"),
    *(Subject(name, frozenset(LAYERS[: n + 1]), ("plain", *LAYERS)[n]) for n, name in enumerate(LAYERS)),
)
VARIANTS = (
    Subject("token", frozenset(("tls", "token")), "tls"),
    Subject("verification_alone", frozenset(("verification",)), "plain"),
)
SUBJECTS = (*STEPS, *VARIANTS)


# ---- servers and clients -----------------------------------------------------------------------------------------
@contextmanager
def opened(
    stack: Stack, rows: F32, profile: str, subjects: Sequence[Subject] = SUBJECTS
) -> Iterator[dict[str, Collection]]:
    """By name of the subject, `plain` first: its client's collection, open, of a server with its layers."""
    key, archive = CollectionKey.generate(), stack.folder / "archive"
    with ExitStack() as running:
        addresses: dict[frozenset[str], str] = {}
        collections = {}
        for subject in subjects:
            served = subject.layers - {"verification"}
            if served not in addresses:
                addresses[served] = running.enter_context(stack.serving(served))
                with stack.client(served, addresses[served]) as client:
                    _fill(client, key, rows, profile, archive)
            client = running.enter_context(stack.client(served, addresses[served]))
            collections[subject.name] = client.open_collection(NAME, key=key)
            if "verification" not in subject.layers:
                unchecked(collections[subject.name])
        yield collections


def _fill(client: Client, key: CollectionKey, rows: F32, profile: str, archive: Path) -> None:
    """The first server is inserted into, and the others get what it stored."""
    if archive.exists():
        client.import_collection(archive, progress=False)
        return
    collection = client.create_collection(NAME, dim=rows.shape[1], key=key, profile=profile)
    collection.insert(range(len(rows)), rows, progress=False)
    client.export_collection(NAME, archive, progress=False)


# ---- verification ------------------------------------------------------------------------------------------------
def _engine(collection: Collection) -> HintClient:
    engine = collection._engine
    assert isinstance(engine, HintClient)
    return engine


def unchecked(collection: Collection) -> None:
    """From now on this open collection decrypts answers without verifying them: for a measurement, and nothing else."""
    _engine(collection)._verify = lambda *_: None  # type: ignore[method-assign]


def verification_work_s(collection: Collection, queries: F32) -> float:
    """Median processor seconds of the check, a query."""
    engine = _engine(collection)
    verify, took = engine._verify, list[float]()

    def timed(*arguments: Any) -> None:
        began = time.thread_time()
        verify(*arguments)
        took.append(time.thread_time() - began)

    engine._verify = timed  # type: ignore[method-assign,assignment]
    sums = []
    for query in queries:
        took.clear()
        collection.search(query, k=K)
        sums.append(sum(took))
    engine._verify = verify  # type: ignore[method-assign]
    return statistics.median(sums)


# ---- correctness -------------------------------------------------------------------------------------------------
def check(collections: Mapping[str, Collection], queries: F32, tolerance: float) -> int:
    """How many hits were compared with those of the first collection. Raises AssertionError where they differ."""
    compared = 0
    for query in queries:
        expected: list[Hit] | None = None
        for name, collection in collections.items():
            found = collection.search(query, k=K)
            if expected is None:
                expected = found
                continue
            if not same(found, expected, tolerance):
                raise AssertionError(f"{name}: its hits are others than those of {next(iter(collections))}")
            compared += len(found)
    return compared


def same(found: Sequence[Hit], expected: Sequence[Hit], tolerance: float) -> bool:
    """The same hits, of which no score differs by more than `tolerance`; those as close to the last one may change
    places with others."""
    if tolerance == 0:
        return [(hit.id, hit.score) for hit in found] == [(hit.id, hit.score) for hit in expected]
    scores, wanted = ([hit.score for hit in hits] for hits in (found, expected))
    if len(scores) != len(wanted) or not np.allclose(scores, wanted, rtol=0, atol=tolerance):
        return False
    ids = {hit.id for hit in found}
    return all(hit.id in ids for hit in expected if hit.score > wanted[-1] + 2 * tolerance)


# ---- figures -----------------------------------------------------------------------------------------------------
def figures(times: Mapping[str, Sequence[float]], subjects: Sequence[Subject]) -> dict[str, dict[str, Any]]:
    """By name, as the keys above say. times: seconds of each round; rounds are drawn anew for all at once."""
    seconds = {name: np.array(t) for name, t in times.items()}
    rounds = len(seconds["plain"])
    drawn = np.random.default_rng(1).integers(0, rounds, (RESAMPLES, rounds))
    medians = {name: float(np.median(t)) for name, t in seconds.items()}
    resampled = {name: np.median(t[drawn], axis=1) for name, t in seconds.items()}
    out = {}
    for subject in subjects:
        name, base = subject.name, subject.base
        out[name] = {
            "layers": sorted(subject.layers),
            "base": base,
            "median_s": medians[name],
            "minimum_s": float(seconds[name].min()),
            "maximum_s": float(seconds[name].max()),
            **_between("ratio_to_plain", medians[name] / medians["plain"], resampled[name] / resampled["plain"]),
            **_between("added_s", medians[name] - medians[base], resampled[name] - resampled[base]),
        }
    return out


def _between(key: str, value: float, resampled: F64) -> dict[str, float]:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return {key: value, f"{key}_low": float(low), f"{key}_high": float(high)}


def measure(a: argparse.Namespace) -> dict[str, Any]:
    data, queries = make_data(a.rows, a.dim)
    rows, asked = data.astype(np.float32), queries.astype(np.float32)
    del data
    error = Parameters.choose(a.profile, a.dim).score_error_std
    tolerance = 0.0 if a.profile == "exact" else STANDARD_DEVIATIONS * 2**0.5 * error
    with (
        tempfile.TemporaryDirectory(prefix="hesearch-bench-") as name,
        Stack.made(Path(name), a.threads) as stack,
        opened(stack, rows, a.profile) as collections,
    ):
        identical = check(collections, asked[:5], tolerance)

        def run(collection: Collection) -> Any:
            of = itertools.cycle(asked)
            return lambda: collection.search(next(of), k=K)

        names = list(collections)
        order = (*names[::2], *names[1::2])  # no server is asked twice in a row: its index would be in the cache
        timings = alternate({name: run(collections[name]) for name in order}, a.rounds)
        work_s = verification_work_s(collections["verification"], asked)
    times = {name: timing.times_s for name, timing in timings.items()}
    steps, variants = figures(times, STEPS), figures(times, VARIANTS)
    report = collections["plain"].last_search
    assert report is not None
    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(a).items() if k != "json"},
        "steps": steps,
        "variants": variants,
        "ratio_goal": steps[GOAL_STEP]["ratio_to_plain"],
        "ratio_all": steps[LAYERS[-1]]["ratio_to_plain"],
        "verification_work_s": work_s,
        "query_bytes": report.query_bytes,
        "answer_bytes": report.answer_bytes,
        "identical_hits": identical,
    }


_EXAMPLES = """examples:
  python -m benchmarks.layers                                              (100,000 x 512, exact: about three minutes)
  python -m benchmarks.layers --profile compact --json layers_compact.json
  python -m benchmarks.layers --rows 5000 --dim 64 --rounds 21             (a trial)"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layers",
        description="A whole query while TLS, identities, policies, audit, … are switched on.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=100_000, help="default %(default)s")
    parser.add_argument("--dim", type=int, default=512, help="default %(default)s")
    parser.add_argument("--profile", choices=("exact", "compact", "precise"), default="exact")
    parser.add_argument("--threads", type=int, default=1, help="of each server; default %(default)s")
    parser.add_argument("--rounds", type=int, default=201, help="queries of each; default %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print_json(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

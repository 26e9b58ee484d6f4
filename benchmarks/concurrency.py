"""How a server's time per query falls when several queries come: in one call, and from as many callers at once.

    python -m benchmarks.concurrency --rows 100000 --dim 512 --profile compact --threads 2 --json out.json

Two servers hold the same rows: ours, and FAISS behind the same gRPC stack (benchmarks.faiss_server). What asks them is
light: ciphertexts are made beforehand, answers are drained and not recovered; callers are threads of LOADERS processes,
each on a connection of its own, that ask CALLS times in a row. It shares the machine with the servers all the same.
First correctness: the answers to each query in one call of all, and from that many callers at once, must be
bit-identical to those of a call with that query alone.

JSON keys (stable): `machine`, `arguments`, `identical_answers` (how many were compared), `batch` and `concurrent`:
number of queries → {`s_per_query` (wall time / queries, median of alternating rounds), `faiss_s_per_query`,
`times_faster_than_alone` (`s_per_query` of one / of so many), `ratio_vs_faiss` (`s_per_query` / `faiss_s_per_query`)}.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faiss_server import METHOD
from benchmarks.machine import describe, print_json
from benchmarks.overhead import make_data
from benchmarks.servers import ANSWER, Asker, Encrypted, process, serve
from benchmarks.timing import alternate
from he_client import Client, CollectionKey

SIZES = (1, 2, 4, 8, 16, 32, 64)
LOADERS = 8  #: processes; callers are dealt to them in turn
CALLS = 3  #: of each caller in one round, so that all but the ends is under full load

Messages = Sequence[bytes]
Ask = Callable[[int], object]  #: so many queries


class Crowd:
    """Callers in processes of their own: `ask(n)` lets the first n of them ask at once."""

    def __init__(self, links: Sequence[Connection]) -> None:
        self._links = links

    def ask(self, callers: int, calls: int, *, keep: bool = False) -> tuple[float, list[list[bytes]]]:
        """Seconds until all have their answers `calls` times; with `keep` the last responses of each caller."""
        links, loaders = self._links[:callers], len(self._links)
        start = time.perf_counter()
        for number, link in enumerate(links):
            link.send((len(range(number, callers, loaders)), calls, keep))
        replies = [link.recv() for link in links]
        elapsed = time.perf_counter() - start
        if failed := [reply for reply in replies if isinstance(reply, str)]:
            raise RuntimeError(f"a caller failed: {failed[0]}")
        return elapsed, [replies[n % loaders][n // loaders] for n in range(callers)] if keep else []


@contextmanager
def crowd(address: str, method: str, requests: Sequence[Messages], loaders: int = LOADERS) -> Iterator[Crowd]:
    """A caller for each of the requests, in at most so many processes."""
    context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    loaders = min(loaders, len(requests))
    links, processes = [], []
    for number in range(loaders):
        ours, theirs = context.Pipe()
        arguments = (theirs, address, method, requests[number::loaders])
        processes.append(context.Process(target=_load, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        links.append(ours)
    try:
        for link in links:
            link.recv()  # connected
        yield Crowd(links)
    finally:
        for link in links:
            link.close()
        for process in processes:
            process.join()


def _load(link: Connection, address: str, method: str, requests: Sequence[Messages]) -> None:
    """A loader: for every (callers, calls, keep) received, its first callers ask."""
    askers = [Asker(address, method) for _ in requests]

    def one(number: int, calls: int) -> list[bytes]:
        responses: list[bytes] = []
        for _ in range(calls):
            responses = askers[number](requests[number])
        return responses

    with ThreadPoolExecutor(len(askers)) as pool:
        link.send(None)
        while True:
            try:
                callers, calls, keep = link.recv()
            except EOFError:
                return
            try:
                responses = list(pool.map(one, range(callers), [calls] * callers))
                link.send(responses if keep else None)
            except Exception as error:
                link.send(repr(error))


def check(
    encrypted: Encrypted, ask: Callable[[Messages], list[bytes]], together: Crowd, ciphertexts: Sequence[bytes]
) -> int:
    """Raises AssertionError unless each query has the same answer alone, in one call of all, and beside all."""
    count = len(ciphertexts)
    alone = [encrypted.answers(ask(encrypted.messages([one])), 1)[0] for one in ciphertexts]
    batch = encrypted.answers(ask(encrypted.messages(ciphertexts)), count)
    _, responses = together.ask(count, 1, keep=True)
    beside = [encrypted.answers(one, 1)[0] for one in responses]
    for number in range(count):
        if not alone[number] == batch[number] == beside[number]:
            raise AssertionError(f"query {number} of {count}: its answer differs from that of a call of its own")
    return count


def curve(ours: Ask, theirs: Ask, calls: int, sizes: Sequence[int], rounds: int) -> dict[str, dict[str, float]]:
    """By number of queries; either server is asked that many, each `calls` times, in turn."""
    out: dict[str, dict[str, float]] = {}
    alone = None
    for size in sizes:
        times = alternate({"ours": partial(ours, size), "theirs": partial(theirs, size)}, rounds)
        mine, faiss = (times[name].median_s / (size * calls) for name in ("ours", "theirs"))
        alone = mine if alone is None else alone
        out[str(size)] = {
            "s_per_query": mine,
            "faiss_s_per_query": faiss,
            "times_faster_than_alone": alone / mine,
            "ratio_vs_faiss": mine / faiss,
        }
    return out


def measure(a: argparse.Namespace, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    data, queries = make_data(a.rows, a.dim)
    rows, count = data.astype(np.float32), max(sizes)
    del data
    asked = np.resize(queries.astype(np.float32), (count, a.dim))
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as name, ExitStack() as stack:
        folder, key = Path(name), CollectionKey.generate()
        np.save(folder / "rows.npy", rows)
        address, _ = stack.enter_context(process(*serve(folder / "data", a.threads)))
        with Client(address, insecure=True) as client:
            client.create_collection("c", dim=a.dim, key=key, profile=a.profile).insert(range(a.rows), rows)
        del rows
        plain, _ = stack.enter_context(process("benchmarks.faiss_server", str(folder / "rows.npy"), str(a.threads)))
        encrypted = Encrypted(address, "c", key)
        ciphertexts = [encrypted.ciphertext(vector) for vector in asked]
        ours = stack.enter_context(crowd(address, ANSWER, [encrypted.messages([one]) for one in ciphertexts]))
        theirs = stack.enter_context(crowd(plain, METHOD, [[one.tobytes()] for one in asked]))
        ask, ask_plain = Asker(address, ANSWER), Asker(plain, METHOD)
        identical = check(encrypted, ask, ours, ciphertexts)
        messages = {size: encrypted.messages(ciphertexts[:size]) for size in sizes}
        figures = {
            "batch": curve(
                lambda size: ask(messages[size]), lambda size: ask_plain([asked[:size].tobytes()]), 1, sizes, a.rounds
            ),
            "concurrent": curve(
                lambda size: ours.ask(size, CALLS), lambda size: theirs.ask(size, CALLS), CALLS, sizes, a.rounds
            ),
        }
        encrypted.close()
    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(a).items() if k != "json"},
        "identical_answers": identical,
        **figures,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.concurrency", description="Server time a query, for 1 to 64 queries at once."
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--profile", choices=("exact", "compact", "precise"), default="exact")
    parser.add_argument("--threads", type=int, default=1, help="of either server")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print_json(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Clients that search and write at the same time, and check every result while all of them go on.

Threads of some processes. Each client has rows of its own in one of the collections, which have rows besides that
nobody changes. What an owner has after n operations follows from the seed, and how many operations each has begun and
been told of is in shared memory. So the client that searches knows, of all others, the few states that it may see, and
of itself and the fixed rows the one: tests.torture.oracle has the rule. An operation that fails as announced is looked
for and, if it did not happen, tried again.
"""

from __future__ import annotations

import multiprocessing
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

import numpy as np

from he_client import Client, Collection, CollectionKey
from he_engine.errors import Conflict, DuplicateIdError, NotFound, Unavailable
from tests.torture.oracle import examine
from tests.torture.rows import Operation, Owner, Rows, create, small_segments
from tests.torture.tally import Tally
from tests.torture.verdict import ALL, FEW, queries, settle

FIXED = dict.fromkeys(range(300), 0)  #: rows of each collection that nobody changes; they are owner 0's
SEARCHES = 0.6  #: of all that a client does
PAUSE_S = 0.05  #: on average, between two things that a client does


@dataclass(frozen=True, slots=True)
class Job:
    """What all clients are told."""

    address: str
    secret: bytes
    seed: int
    clients: int  #: they are numbered from 1
    collections: int
    ready: Any  #: by client: not 0 when it has opened its collection, or failed to
    stop: Any  #: not 0: everybody ends
    begun: Any  #: by owner: operations begun
    done: Any  #: by owner: operations acknowledged

    def place_of(self, client: int) -> str:
        """The collection in which it has its rows."""
        return f"rows-{client % self.collections}"

    def neighbours(self, place: str) -> list[int]:
        """The clients that have their rows in a collection."""
        return [client for client in range(1, self.clients + 1) if self.place_of(client) == place]


class History:
    """What one owner has after n operations; n never falls."""

    def __init__(self, seed: int, number: int) -> None:
        self._owner = Owner(seed, number)
        self._states: deque[Rows] = deque([{}])
        self._first = 0

    def states(self, first: int, last: int) -> list[Rows]:
        """After `first` to `last` operations."""
        while self._first + len(self._states) <= last:
            self._owner.begin()
            self._owner.acknowledged()
            self._states.append(self._owner.rows)
        while self._first < first:
            self._states.popleft()
            self._first += 1
        return list(self._states)[: last - first + 1]


class Worker:
    """One client, on a thread."""

    def __init__(self, job: Job, number: int) -> None:
        self.tally = Tally()
        self._job = job
        self._number = number
        self._owner = Owner(job.seed, number)
        self._place = job.place_of(number)
        self._histories = {other: History(job.seed, other) for other in job.neighbours(self._place) if other != number}
        self._rng = np.random.default_rng([job.seed, number])

    def run(self) -> None:
        job = self._job
        try:
            with Client(job.address, insecure=True, threads=1) as client:
                collection = client.open_collection(self._place, key=CollectionKey(job.secret))
                job.ready[self._number] = 1
                while not job.stop.value:
                    if self._rng.random() < SEARCHES:
                        self._search(collection, int(self._rng.choice((ALL, FEW))))
                    else:
                        self._write(collection)
                    time.sleep(self._rng.exponential(PAUSE_S))
        except Exception as error:
            self.tally.fail(f"client {self._number}", error)
        finally:
            job.ready[self._number] = 1

    def _search(self, collection: Collection, k: int) -> Rows | None:
        """The client's own rows, as found; None where the search failed as announced."""
        job = self._job
        query = queries(self._rng, 1)[0]
        first = {other: job.done[other] for other in self._histories}
        try:
            hits = collection.search(query, k=k)
        except (Conflict, Unavailable) as error:
            self.tally.counts[f"search: {type(error).__name__}"] += 1
            return None
        states: dict[int, Sequence[Rows]] = {
            other: history.states(first[other], job.begun[other]) for other, history in self._histories.items()
        }
        findings = examine(hits, k, query, states | {0: [FIXED], self._number: self._owner.states()})
        self.tally.add(f"client {self._number} after {self._owner.done} operations", findings)
        self.tally.counts["searches checked"] += 1
        return findings.found[self._number]

    def _write(self, collection: Collection) -> None:
        """One operation, until it has happened."""
        job, owner = self._job, self._owner
        operation = owner.begin()
        job.begun[self._number] = owner.done + 1
        failed = False
        while True:
            try:
                operation.run(collection)
                break
            except (Conflict, Unavailable, DuplicateIdError, NotFound) as error:
                if isinstance(error, DuplicateIdError | NotFound) and not failed:
                    raise  # it happened only if an earlier attempt did
                self.tally.counts[f"{operation.kind}: {type(error).__name__}"] += 1
                failed = True
            before = owner.rows
            while (found := self._search(collection, ALL)) is None:
                time.sleep(PAUSE_S)
            if found != before:
                break
        self.tally.counts[f"{operation.kind} acknowledged"] += 1
        owner.acknowledged()
        job.done[self._number] = owner.done


def work(link: Connection, job: Job, numbers: Sequence[int]) -> None:
    """One process: sends what its clients counted, and the states that they left."""
    small_segments()
    workers = [Worker(job, number) for number in numbers]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    link.send([worker.tally for worker in workers])


def left(job: Job, number: int) -> Owner:
    """What one client leaves."""
    owner = Owner(job.seed, number)
    while owner.done < job.done[number]:
        owner.begin()
        owner.acknowledged()
    if job.begun[number] > job.done[number]:
        owner.begin()
    return owner


@contextmanager
def crowd(seed: int, address: str, tally: Tally, *, clients: int, processes: int, collections: int) -> Iterator[None]:
    """So many clients work when the block begins, until it is left; then all that they left is checked."""
    context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    secret = secrets.token_bytes(32)
    key, rng = CollectionKey(secret), np.random.default_rng(seed)
    begun, done = (RawArray("Q", clients + 1) for _ in range(2))
    ready, stop = RawArray("B", clients + 1), RawValue("B", 0)
    job = Job(address, secret, seed, clients, collections, ready, stop, begun, done)
    places = [job.place_of(client) for client in range(collections)]
    with Client(address, insecure=True) as client:
        for place in places:
            Operation("insert", tuple(FIXED), 0).run(create(client, place, key))
    links, started = [], []
    for first in range(1, processes + 1):
        ours, theirs = context.Pipe(duplex=False)
        numbers = range(first, clients + 1, processes)
        started.append(context.Process(target=work, args=(theirs, job, numbers), daemon=True))
        started[-1].start()
        theirs.close()
        links.append(ours)
    try:
        while sum(ready) < clients and any(process.is_alive() for process in started):
            time.sleep(PAUSE_S)
        yield
    finally:
        stop.value = 1
        for link in links:
            for one in link.recv():
                tally.merge(one)
        for process in started:
            process.join()
    for place in places:
        owners = [Owner(seed, 0, rows=dict(FIXED)), *(left(job, number) for number in job.neighbours(place))]
        settle(address, place, key, owners, rng, tally, f"collection {place}")

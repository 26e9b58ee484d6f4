"""Kills a client while it writes; the next one goes on, beside another writer.

    python -m tests.torture.kill_client --seed 1 --runs 500

In a run a client process gets SIGKILL a seeded share of an operation's usual time after an operation of a seeded kind
began. Then another writer commits, after which nothing of the dead client can come true any more, and a client that
knows nothing opens the collection: what was acknowledged is there, what was not is there wholly or not at all, and
no row twice. The next process goes on with the rows that were found. A reseal that was interrupted is then finished:
there is a time when only the old key opens the collection, and one when only the new key does, and nothing else.

JSON keys beside those of tests.torture.tally: `counts`: operations acknowledged by kind, those interrupted that had
happened (`… kept`) and had not (`… undone`).
"""

from __future__ import annotations

import multiprocessing
import secrets
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from he_client import Client, CollectionKey
from he_engine.errors import WrongKeyError
from he_engine.keys import KEY_BYTES
from tests.torture import victim
from tests.torture.moments import Moments
from tests.torture.rows import KINDS, Operation, Owner, create
from tests.torture.server import Server, free_port
from tests.torture.tally import Tally, main
from tests.torture.verdict import settle

NAME = "rows"
START_S = 60.0  #: for a client to begin what it is killed in


class Scene:
    """One collection, and the two owners of its rows: the one whose clients die, and the one that goes on."""

    def __init__(self, seed: int, tally: Tally, server: Server, folder: Path) -> None:
        self._rng = np.random.default_rng(seed)
        self._tally = tally
        self._server = server
        self._folder = folder
        self._where = ""
        self._secret = secrets.token_bytes(KEY_BYTES)
        self._client = Client(server.address, insecure=True)
        create(self._client, NAME, CollectionKey(self._secret))
        self._mortal, self._other = Owner(seed, 1, large=700), Owner(seed, 2)
        self._moments = Moments(self._rng, (*KINDS, "reseal"))
        self._context = multiprocessing.get_context("forkserver")  # quick, and forked before gRPC starts threads
        self._context.set_forkserver_preload([victim.__name__])

    def run(self, number: int) -> None:
        self._where = f"run {number}"
        self._moments.choose()
        if self._moments.kind == "reseal":
            self._reseal(self._folder / f"{number}.journal")
        else:
            self._kill(victim.work, self._mortal, begun=self._until, heard=self._heard)
            self._go_on(self._secret)
        self._tally.runs += 1

    def _reseal(self, journal: Path) -> None:
        """Interrupted, and then finished by the next client."""
        old, new = self._secret, secrets.token_bytes(KEY_BYTES)
        seconds = self._kill(victim.reseal, new, journal, begun=lambda link: link.recv(), heard=lambda _: None)
        try:
            self._go_on(old)
            self._tally.counts["reseal undone"] += 1
        except WrongKeyError:  # the switch had happened, or happened now
            self._go_on(new)
            self._tally.counts["reseal kept"] += 1
        start = time.perf_counter()
        keys = {"key": CollectionKey(old), "new_key": CollectionKey(new)}
        self._client.reseal_collection(NAME, **keys, journal=journal, progress=False)
        self._moments.ended("reseal", seconds + time.perf_counter() - start)
        self._secret = new
        if self._opens(old):
            self._tally.fail(self._where, "the old key opens what was resealed")
        self._go_on(new)

    def _kill(
        self,
        target: Callable[..., None],
        *arguments: object,
        begun: Callable[[Connection], object],
        heard: Callable[[Any], None],
    ) -> float:
        """At the moment, after `begun` has returned: the seconds from then on."""
        ours, theirs = self._context.Pipe(duplex=False)
        place = (theirs, self._server.address, NAME, self._secret)
        process = self._context.Process(target=target, args=(*place, *arguments), daemon=True)
        process.start()
        theirs.close()
        start = 0.0
        try:
            begun(ours)
            start = time.perf_counter()
            self._moments.wait()
            process.kill()
            while True:
                heard(ours.recv())
        except (EOFError, OSError):  # a message that was cut off is an OSError
            process.join()
        seconds = time.perf_counter() - start
        if process.exitcode not in (-9, 0 if target is victim.reseal else -9):
            self._tally.fail(self._where, f"the client ended by itself, exit status {process.exitcode}")
        return seconds

    def _opens(self, secret: bytes) -> bool:
        try:
            self._client.open_collection(NAME, key=CollectionKey(secret)).close()
        except WrongKeyError:
            return False
        return True

    def _go_on(self, secret: bytes) -> None:
        """Another writer commits, so that nothing of the dead client can come true any more; then all is checked."""
        key, operation = CollectionKey(secret), self._other.begin()
        collection = self._client.open_collection(NAME, key=key)
        operation.run(collection)
        collection.close()
        self._other.acknowledged()
        owners = (self._mortal, self._other)
        settle(self._server.address, NAME, key, owners, self._rng, self._tally, self._where)

    def _until(self, link: Connection) -> None:
        """Follows the client until it begins an operation of the kind that is to be interrupted."""
        start = time.perf_counter()
        while link.poll(START_S):
            pending = self._mortal.pending
            self._heard(link.recv())
            now = time.perf_counter()
            if pending is not None:
                self._moments.ended(pending.kind, now - start)
            elif self._mortal.pending is not None and self._mortal.pending.kind == self._moments.kind:
                return
            start = now
        raise TimeoutError(f"a client did nothing for {START_S} s")

    def _heard(self, message: Operation | None) -> None:
        if message is None:
            assert self._mortal.pending is not None
            self._tally.counts[f"{self._mortal.pending.kind} acknowledged"] += 1
            self._mortal.acknowledged()
        else:
            assert self._mortal.begin() == message, "both work out the same operation"

    def close(self) -> None:
        self._client.close()


def run(seed: int, runs: float, tally: Tally) -> None:
    with tempfile.TemporaryDirectory(prefix="hesearch-torture-") as folder:
        server = Server(Path(folder), free_port(np.random.default_rng(seed)))
        with server:
            scene = Scene(seed, tally, server, Path(folder))
            for number in range(int(runs)):
                scene.run(number)
            scene.close()
            if status := server.terminate():
                tally.fail("the end", f"SIGTERM: exit status {status}")


if __name__ == "__main__":
    raise SystemExit(main("tests.torture.kill_client", "kill -9 of a client while it writes", "runs", 500, run))

"""Kills the server while clients write, starts it again on the same folder, and looks for every row.

    python -m tests.torture.kill_server --seed 1 --runs 1000

Two clients with rows of their own work on one collection, each as fast as it can. In a run the server gets SIGKILL a
seeded share of an operation's usual time after a seeded operation began. In half of the runs the clients go on asking,
over the restart; in the others they give up, and new ones come. Then a client that knows nothing opens the collection:
what was acknowledged is there, what was not is there wholly or not at all, and every score is that of the plaintext.
One folder serves BATCH runs, and those of odd seeds are sealed: each start replaces its data keys, and some kills hit
that. Batch b of seed s is the first of seed s + b. Operations and moments repeat with the seed, scheduling does not.

JSON keys beside those of tests.torture.tally: `counts`: operations acknowledged by kind, those interrupted that had
happened (`… kept`) and had not (`… undone`), checks of whole folders (`fsck`).
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from he_client import Client, Collection, CollectionKey
from he_engine.errors import Unavailable
from he_server.operate.fsck import Report, check
from he_server.storage.kek import KeyProvider, new_kek_file, open_kek
from tests.torture.moments import Moments
from tests.torture.rows import Operation, Owner, create, small_segments
from tests.torture.server import Server, free_port
from tests.torture.tally import Tally, main
from tests.torture.verdict import settle

BATCH = 25  #: runs on one folder
FSCK = 10  #: runs from one check of the folder to the next
NAME = "rows"
DATA_KEY_DAYS = "1e-9"  #: of every second folder: each start replaces its data keys
ROTATIONS, ROTATION_S = 0.3, 0.1  #: share of its runs in which it is killed again so soon after the start


class Writer:
    """A client on a thread of its own; it works until it is told to stop or an operation fails."""

    def __init__(self, owner: Owner, address: str, key: CollectionKey, *, patient: bool, scene: Scene) -> None:
        self.owner = owner
        self.patient = patient
        self._scene = scene
        self._client = Client(address, insecure=True)
        self._collection: Collection = self._client.open_collection(NAME, key=key)
        self._thread = threading.Thread()
        self._closed = False

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        scene = self._scene
        while not scene.stopping.is_set():
            operation = self.owner.begin()
            start = scene.began(self.owner, operation)
            try:
                operation.run(self._collection)
            except Unavailable:
                break
            except Exception as error:
                if self._closed:  # in the middle of an operation, which may then fail in any way
                    break
                scene.tally.fail(f"{scene.where}, {operation.kind} of owner {self.owner.number}", error)
                break
            scene.ended(operation, time.perf_counter() - start)
            self.owner.acknowledged()
        scene.shot.set()

    def join(self) -> None:
        self._thread.join()

    def close(self) -> None:
        self._closed = True
        self._client.close()


class Scene:
    """One folder and what happens to it."""

    def __init__(self, seed: int, folder: Path, tally: Tally, *options: str, sealed: bool) -> None:
        """options: of `hesearch serve`."""
        self.tally = tally
        self.where = ""
        self.stopping = threading.Event()
        self.shot = threading.Event()  #: the operation that is to be interrupted has begun
        self._rng = np.random.default_rng(seed)
        self._key = CollectionKey.generate()
        self._kek = f"file:{folder.with_suffix('.kek')}" if sealed else ""
        sealing = ("--kek", self._kek, "--data-key-days", DATA_KEY_DAYS) if sealed else ()
        self._server = Server(folder, free_port(self._rng), *sealing, *options)
        self._owners = [Owner(seed, number, large=400) for number in (1, 2)]
        self._writers: dict[int, Writer] = {}
        self._moments = Moments(self._rng)
        self._target = self._owners[0]  #: whose operation is to be interrupted

    # ---- told by the writers ---------------------------------------------------------------------------
    def began(self, owner: Owner, operation: Operation) -> float:
        if owner is self._target and operation.kind == self._moments.kind:
            self.shot.set()
        return time.perf_counter()

    def ended(self, operation: Operation, seconds: float) -> None:
        self._moments.ended(operation.kind, seconds)
        later = " after the restart" if self.stopping.is_set() else ""
        self.tally.counts[f"{operation.kind} acknowledged{later}"] += 1

    # ---- one run ---------------------------------------------------------------------------------------
    def open(self) -> None:
        if self._kek:
            new_kek_file(Path(self._kek.partition(":")[2]))
        self._server.start()
        with Client(self._server.address, insecure=True) as client:
            create(client, NAME, self._key)

    def run(self, number: int) -> None:
        self.where = f"run {number}"
        self._moments.choose()
        self._target = self._owners[int(self._rng.integers(len(self._owners)))]
        patient = bool(self._rng.random() < 0.5)
        self._hire(patient)
        self.stopping.clear()
        self.shot.clear()
        for writer in self._writers.values():
            writer.start()
        self.shot.wait()
        self._moments.wait()
        self.crash()
        self.stopping.set()
        if number % FSCK == FSCK - 1:
            self.fsck()
        if not patient:
            for writer in self._writers.values():
                writer.close()
        self.revive()
        if self._kek and self._rng.random() < ROTATIONS:
            time.sleep(self._rng.uniform(0, ROTATION_S))
            self.crash()
            self.revive()
            self.tally.counts["kills soon after a start"] += 1
        for writer in self._writers.values():
            writer.join()
        settle(self._server.address, NAME, self._key, self._owners, self._rng, self.tally, self.where)
        self.tally.runs += 1

    def crash(self) -> None:
        self._server.kill()

    def revive(self) -> None:
        self._server.start()

    def _hire(self, patient: bool) -> None:
        """Patient clients stay from run to run."""
        for owner in self._owners:
            writer = self._writers.get(owner.number)
            if writer is None or not (patient and writer.patient):
                if writer is not None:
                    writer.close()
                address = self._server.address
                self._writers[owner.number] = Writer(owner, address, self._key, patient=patient, scene=self)

    def fsck(self) -> None:
        """Of a folder that no server has open."""
        self.checked(check(self._server.data, self.kek))

    @property
    def kek(self) -> KeyProvider | None:
        return open_kek(self._kek) if self._kek else None

    def checked(self, report: Report) -> None:
        self.tally.counts["fsck"] += 1
        for problem in report.problems:
            self.tally.fail(f"{self.where}, fsck", problem)

    def close(self) -> None:
        """The last server ends as it should."""
        for writer in self._writers.values():
            writer.close()
        status = self._server.terminate()
        if status:
            self.tally.fail(self.where, f"SIGTERM: exit status {status}")
        self.fsck()
        self._server.stop()


def run(seed: int, runs: float, tally: Tally) -> None:
    small_segments()
    with tempfile.TemporaryDirectory(prefix="hesearch-torture-") as name:
        for batch, first in enumerate(range(0, int(runs), BATCH)):
            scene = Scene(seed + batch, Path(name) / str(batch), tally, sealed=bool((seed + batch) % 2))
            scene.open()
            for number in range(first, min(first + BATCH, int(runs))):
                scene.run(number)
            scene.close()


if __name__ == "__main__":
    raise SystemExit(main("tests.torture.kill_server", "kill -9 of the server while clients write", "runs", 1000, run))

"""What a client does while it is lied to, and what an honest server would have made of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from he_client import Client, Collection, CollectionKey
from he_engine.errors import Unavailable
from he_engine.hint_client import HintClient
from tests.malicious.server import LyingServer
from tests.malicious.world import EVERYTHING, LEDGER, NOTES, SCRAPS, World, digest, exact

TIMEOUT_S, HASTY_S = 60.0, 0.15
DIFFERENT = "the results are not the honest ones"


class Wrong(AssertionError):
    """A lie was believed, or something was decrypted that an honest server had not answered."""


class Stage:
    """The clients of a lying server."""

    def __init__(self, world: World, server: LyingServer, folder: Path) -> None:
        self.world, self.server, self._folder = world, server, folder
        self._readers: dict[bool, tuple[Client, Collection]] = {}
        self.restart()
        with self.client(pinned=True) as client:
            self.open(client, NOTES)

    def restart(self) -> None:
        """Readers that have just been opened, honestly."""
        for client, _ in self._readers.values():
            client.close()
        for hasty, timeout_s in ((False, TIMEOUT_S), (True, HASTY_S)):
            client = Client(self.server.address, insecure=True, threads=1, timeout_s=timeout_s)
            while True:
                try:
                    self._readers[hasty] = client, client.open_collection(NOTES, key=self.world.key)
                    break
                except Unavailable:  # a fraction of a second is not enough where the machine is busy
                    continue

    @contextlib.contextmanager
    def client(self, *, pinned: bool = False, hasty: bool = False) -> Iterator[Client]:
        """A new one; `pinned`: that knows the newest version of the notes, from before."""
        state = self._folder / "state" if pinned else None
        timeout_s = HASTY_S if hasty else TIMEOUT_S
        with Client(self.server.address, insecure=True, threads=1, timeout_s=timeout_s, state=state) as client:
            yield client

    def open(self, client: Client, name: str, key: CollectionKey | None = None) -> Collection:
        opened = client.open_collection(name, key=key or self.world.key)
        self.world.watch.know(opened)
        return opened

    def reader(self, hasty: bool) -> Collection:
        return self._readers[hasty][1]

    def close(self) -> None:
        for client, _ in self._readers.values():
            client.close()


Scene = Callable[[Stage, np.random.Generator, bool], None]


def require(results: Any, expected: Any) -> None:
    if results != expected:
        raise Wrong(DIFFERENT)


def _asked(stage: Stage, reader: Collection, chosen: list[int]) -> None:
    found = exact(reader.search(stage.world.queries[chosen], k=EVERYTHING))
    require(found, [stage.world.expected[NOTES][i] for i in chosen])


def search(stage: Stage, rng: np.random.Generator, hasty: bool) -> None:
    """A reader that has been there for long asks one query."""
    _asked(stage, stage.reader(hasty), [int(rng.integers(len(stage.world.queries)))])


def batch(stage: Stage, rng: np.random.Generator, hasty: bool) -> None:
    """It asks two or three at a time."""
    count = int(rng.integers(2, 4))
    _asked(stage, stage.reader(hasty), rng.permutation(len(stage.world.queries))[:count].tolist())


def refresh(stage: Stage, rng: np.random.Generator, hasty: bool) -> None:
    """It looks for a newer version, and asks."""
    require(stage.reader(hasty).count(), len(stage.world.expected[NOTES][0]))
    search(stage, rng, hasty)


def open_(stage: Stage, rng: np.random.Generator, hasty: bool, pinned: bool = False) -> None:
    """A client opens the collection and asks."""
    with stage.client(pinned=pinned, hasty=hasty) as client:
        _asked(stage, stage.open(client, NOTES), [int(rng.integers(len(stage.world.queries)))])


def open_pinned(stage: Stage, rng: np.random.Generator, hasty: bool) -> None:
    """The same, by a client that has seen it before."""
    open_(stage, rng, hasty, pinned=True)


def two_clients(stage: Stage, rng: np.random.Generator, hasty: bool) -> None:
    """One sees the true history, the other, which shares its pins, comes later; or the other way round."""
    with stage.client(hasty=hasty) as client:
        opened = stage.open(client, NOTES)
        open_pinned(stage, rng, hasty)
        require(opened.count(), len(stage.world.expected[NOTES][0]))


def compact(stage: Stage, _: np.random.Generator, hasty: bool) -> None:
    """Three segments become one."""
    with stage.client(hasty=hasty) as client:
        stage.open(client, SCRAPS).compact(progress=False)
    require(stage.world.found(SCRAPS), stage.world.expected[SCRAPS])


def fingerprints(stage: Stage, _: np.random.Generator, hasty: bool) -> None:
    """The same segments under new fingerprints; as those of a client that has just come."""
    with stage.client(hasty=hasty) as client:
        opened = stage.open(client, SCRAPS)
        try:
            opened.reseal_fingerprints(everything=True, progress=False)
        finally:
            stage.world.watch.know(opened)
        require(exact(opened.search(stage.world.queries[:1], k=EVERYTHING)), stage.world.expected[SCRAPS])
    require(stage.world.found(SCRAPS), stage.world.expected[SCRAPS])


def reseal(stage: Stage, _: np.random.Generator, hasty: bool) -> None:
    """Everything under a new key."""
    key = CollectionKey.generate()
    with tempfile.TemporaryDirectory() as folder, stage.client(hasty=hasty) as client:
        stage.open(client, SCRAPS).reseal(key, journal=Path(folder) / "journal", progress=False)
    require(stage.world.found(SCRAPS, key), stage.world.expected[SCRAPS])


def export(stage: Stage, _: np.random.Generator, hasty: bool) -> None:
    """An archive, which is then imported somewhere else."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        with stage.client(hasty=hasty) as client:
            client.export_collection(SCRAPS, archive, progress=False)
        with Client(Path(folder) / "data", threads=1) as other:
            other.import_collection(archive, progress=False)
            opened = other.open_collection(SCRAPS, key=stage.world.key)
            require(exact(opened.search(stage.world.queries[:1], k=EVERYTHING)), stage.world.expected[SCRAPS])


def write(stage: Stage, _: np.random.Generator, hasty: bool) -> None:
    """A client writes and reads; what was acknowledged must be there, or an error says that it is not."""
    with stage.client(hasty=hasty) as client:
        opened = stage.open(client, LEDGER)
        before = opened.count()
        opened.insert(range(50, 55), stage.world.rows[50:55], progress=False)
        opened.delete([50])
        stage.world.watch.know(opened)
        require(opened.count(), before + 4)
        found = {h.id for h in opened.search(stage.world.queries[0], k=EVERYTHING)}
    require(len(found) == before + 4 and {51, 52, 53, 54} <= found and 50 not in found, True)


SCENES: dict[str, Scene] = {
    "search": search,
    "batch": batch,
    "refresh": refresh,
    "open": open_,
    "open pinned": open_pinned,
    "two clients": two_clients,
    "compact": compact,
    "fingerprints": fingerprints,
    "reseal": reseal,
    "export": export,
    "write": write,
}
CHANGES = {  #: what a scene may change
    "compact": SCRAPS,
    "fingerprints": SCRAPS,
    "reseal": SCRAPS,
    "export": SCRAPS,
    "write": LEDGER,
}


@contextlib.contextmanager
def watched(world: World) -> Iterator[None]:
    """Every decryption is counted and compared, at the engine's own entries: of an answer, and of an index. So is every
    index that a new fingerprint vouches for."""
    recover, decrypt, vouch = HintClient._recover_one, HintClient.decrypt, HintClient.fingerprint_again
    watch = world.watch

    def recovering(self: HintClient, query: Any, segment: Any, answer: Any) -> Any:
        at = digest(query.ciphertext), watch.names.get(segment.fingerprint.salt, b"")
        watch.counts["answers"] += 1
        if watch.honest.get(at) != answer.tobytes():
            watch.counts["wrong answers"] += 1
        return recover(self, query, segment, answer)

    def using(use: Callable[[HintClient, Any, Any], Any]) -> Any:
        def counted(self: HintClient, segment: Any, index: Any) -> Any:
            watch.counts["indexes"] += 1
            if watch.indexes.get(segment.seed) != digest(memoryview(index)):
                watch.counts["wrong indexes"] += 1
            return use(self, segment, index)

        return counted

    HintClient._recover_one = recovering  # type: ignore[method-assign]
    HintClient.decrypt, HintClient.fingerprint_again = using(decrypt), using(vouch)  # type: ignore[method-assign]
    try:
        yield
    finally:
        HintClient._recover_one, HintClient.decrypt = recover, decrypt  # type: ignore[method-assign]
        HintClient.fingerprint_again = vouch  # type: ignore[method-assign]

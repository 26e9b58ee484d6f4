"""Actors and nodes that are lost while they are asked: another replica answers, or the call waits, or it fails and says
what is missing. Never is an answer left out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from he_client import CollectionKey
from he_engine.errors import Unavailable
from he_server.access.access import Caller
from he_server.cluster import actors as actors_module
from he_server.cluster import fanout
from he_server.cluster.answerer import RayAnswerer
from he_server.cluster.shard import _OPEN, TAKE_BYTES
from he_server.service import Service
from he_server.storage.kek import new_kek_file
from tests.cluster.answers import Residues, filled, opened, queries_of, residues
from tests.cluster_fixture import Nodes, actors, apart, kill, serving, until


@pytest.fixture(scope="module")
def started() -> Iterator[Nodes]:
    with Nodes(2) as nodes:
        yield nodes


@pytest.fixture
def nodes(started: Nodes) -> Nodes:
    """Two, whatever the last test took."""
    while len(started.nodes) < 2:
        started.nodes.append(started.add())
    return started


def prepared(folder: Path) -> Residues:
    """A folder with a collection, and what one process answers."""
    with serving(folder, None) as (address, service):
        filled(address, CollectionKey.generate(), "compact")
        return residues(service)


class Searches:
    """Searches one after the other, in a thread, until `stop`."""

    def __init__(self, service: Service, expected: Residues) -> None:
        self._service, self._expected = service, expected
        self._stop = threading.Event()
        self.right = 0
        self.problems: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if residues(self._service) == self._expected:
                    self.right += 1
                else:
                    self.problems.append("other bits")
            except Exception as error:
                self.problems.append(f"{type(error).__name__}: {error}")

    def more(self, count: int) -> None:
        """Waits until so many more were right. Raises TimeoutError after 5 minutes."""
        wanted, until_s = self.right + count, time.monotonic() + 300
        while self.right < wanted and not self.problems:
            if time.monotonic() > until_s:
                raise TimeoutError(f"got {self.right - wanted + count} answers in 5 minutes, expected {count}")
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_a_lost_actor_is_waited_for(tmp_path: Path, nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    """With one replica, it is started again and reads its segments anew; who searches meanwhile waits."""
    expected = prepared(tmp_path)
    with serving(tmp_path, nodes, cluster_shards=2, cluster_wait_s=300.0) as (_, service):
        searches = Searches(service, expected)
        try:
            searches.more(3)
            pids = [kill(service, shard) for shard in (0, 1)]
            searches.more(3)
            again = [ray.get(actors(service).actor(shard, 0).ping.remote())["pid"] for shard in (0, 1)]
        finally:
            searches.stop()
        assert searches.problems == []
        assert set(pids).isdisjoint(again)
    for shard in (0, 1):
        said = f"an actor of shard {shard} was given up"
        assert sum(said in record.getMessage() for record in caplog.records) == 1  # not once a call


def test_a_node_is_lost_and_another_comes(tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another replica answers. The actors come back on the node that is left, and when a further one comes, one of the
    two that share a node moves there."""
    monkeypatch.setattr(actors_module, "_PING_S", 0.2)
    expected = prepared(tmp_path)
    with serving(tmp_path, nodes, cluster_shards=2, cluster_replicas=2) as (_, service):
        until(service, apart)
        searches = Searches(service, expected)
        try:
            searches.more(5)
            nodes.lose(nodes.nodes[0])
            searches.more(20)
            together = until(service, lambda found: all(len(one) == 1 for one in found))
            nodes.nodes.append(nodes.add())
            again = until(service, apart)
            searches.more(5)
        finally:
            searches.stop()
        assert searches.problems == []
        assert {place for place in again if again[place] != together[place]} == {(0, 1), (1, 1)}


def test_a_silent_actor_is_not_waited_for(tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two replicas stands still: every search asks the other, long before it is given up."""
    expected = prepared(tmp_path)
    with serving(tmp_path, nodes, cluster_shards=1, cluster_replicas=2, cluster_wait_s=600.0) as (_, service):
        for _ in range(3):
            assert residues(service) == expected
        pid = ray.get(actors(service).actor(0, 1).ping.remote())["pid"]
        monkeypatch.setattr(fanout.secrets, "randbelow", lambda _: 1)  # it is asked first
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                assert residues(service) == expected
        finally:
            os.kill(pid, signal.SIGCONT)


def test_replicas_that_all_stand_still(tmp_path: Path, nodes: Nodes) -> None:
    """The call fails in time, and says why; when they go on, so do searches, and nothing of the call is left."""
    expected = prepared(tmp_path)
    with serving(tmp_path, nodes, cluster_shards=1, cluster_replicas=2, cluster_wait_s=3.0) as (_, service):
        _answers_in_time(service, expected)
        both = [actors(service).actor(0, replica) for replica in (0, 1)]
        pids = [ray.get(one.ping.remote())["pid"] for one in both]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match=r"shard 0 of 1, which has 5 of 5 segments, did not answer for \d s"):
                residues(service)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        _answers_in_time(service, expected)
        assert [ray.get(one.ping.remote())["calls"] for one in both] == [0, 0]


def test_no_data_key_is_in_ray_s_files(tmp_path: Path, nodes: Nodes) -> None:
    """Neither in its object store nor in what it logs or writes."""
    new_kek_file(tmp_path / "kek")
    with serving(tmp_path / "data", nodes, cluster_shards=1, kek=f"file:{tmp_path / 'kek'}") as (address, service):
        filled(address, CollectionKey.generate(), "compact")
        residues(service)
        (state,) = service.store.states()
        assert state.newest_key is not None
        secret = state.newest_key.secret
        files = [path for path in Path(nodes.folder).rglob("*") if path.is_file()]
        files += [path for path in Path("/dev/shm").glob("plasma*") if path.is_file()]
        assert len(files) > 10
        assert not [path for path in files if secret in path.read_bytes()]


def test_calls_that_nobody_takes_hold_up_others_for_seconds_only(tmp_path: Path, nodes: Nodes) -> None:
    """They have all places of the only actor; who comes next is neither refused nor left to ask without a pause."""
    expected = prepared(tmp_path)
    with serving(tmp_path, nodes, cluster_shards=1, cluster_wait_s=30.0) as (_, service):
        assert residues(service) == expected
        answerer = service.answerer
        assert isinstance(answerer, RayAnswerer)
        ((_, searched),) = service.live()
        ((_, asked),) = answerer._division(searched).parts
        count = 2 * TAKE_BYTES // sum(map(len, expected.values())) * 3  # answers of more than one batch
        queries = np.frombuffer(b"".join(queries_of(asked.parameters, count)), np.uint8).reshape(count, -1)
        actor, sent = actors(service).actor(0, 0), ray.put(queries)
        opened = [actor.open.remote(b"%d" % number, asked.name, {}, sent) for number in range(100)]
        assert sum(batch.full for batch in ray.get(opened)) == 100 - _OPEN
        before = service.store.tally.values()["cluster_losses"]
        assert residues(service) == expected
        assert service.store.tally.values()["cluster_losses"] == before, "nothing was lost"


def test_what_is_missing_is_said(tmp_path: Path, nodes: Nodes) -> None:
    expected = prepared(tmp_path)
    missing = r"shard [01] of 2, which has [1-4] of 5 segments, did not answer for [5-9] s"
    with serving(tmp_path, nodes, cluster_shards=2, cluster_wait_s=5.0) as (_, service):
        _answers_in_time(service, expected)
        for node in list(nodes.nodes):
            nodes.lose(node)
        with pytest.raises(Unavailable, match=missing):
            residues(service)
        began_s = time.monotonic()
        hurried = Caller(remaining_s=lambda: began_s + 3.5 - time.monotonic())
        with pytest.raises(Unavailable, match=missing.replace("[5-9]", "[1-4]")):  # before its deadline
            list(opened(service, caller=hurried))
        nodes.nodes.append(nodes.add())
        _answers_in_time(service, expected)


def _answers_in_time(service: Service, expected: Residues) -> None:
    """Raises the last error after a minute."""
    until_s = time.monotonic() + 60
    while True:
        try:
            assert residues(service) == expected
            return
        except Unavailable:
            if time.monotonic() > until_s:
                raise

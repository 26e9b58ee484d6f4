"""Nodes that come and go, and front ends with other settings beside the old ones, while clients search: no call fails,
and every answer has the bits that one process gives."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from he_client import CollectionKey
from he_server.cluster import actors as actors_module
from he_server.cluster import fanout
from he_server.service import Service
from tests.cluster.answers import filled, residues
from tests.cluster.faults import Searches, prepared
from tests.cluster_fixture import GIVE_UP_S, Nodes, Where, actors, apart, kill, nodes_of, serving, until, where
from tests.postgres_fixture import PostgresServer, postgres
from tests.s3_fixture import ENVIRONMENT, S3Server, s3, s3_server

__all__ = ["postgres", "s3", "s3_server"]


@pytest.fixture(scope="module")
def started() -> Iterator[Nodes]:
    os.environ.update(ENVIRONMENT)  # of the actors
    with Nodes(1) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Front ends look after their actors without a pause that one would notice."""
    monkeypatch.setattr(actors_module, "_PING_S", 0.2)


def of_count(nodes: Nodes, count: int) -> Nodes:
    """So many, whatever the last test left."""
    while len(nodes.nodes) > count:
        nodes.lose(nodes.nodes[-1])
    while len(nodes.nodes) < count:
        nodes.nodes.append(nodes.add())
    return nodes


@contextlib.contextmanager
def searched(service: Service, expected: Any) -> Iterator[Searches]:
    """Without a break; no search fails or has other bits."""
    searches = Searches(service, expected)
    try:
        searches.more(3)
        yield searches
        searches.more(3)
    finally:
        searches.stop()
    assert searches.problems == []


def ended(node: Any) -> None:
    """Waits until Ray has ended a node by itself. Raises TimeoutError."""
    until_s = time.monotonic() + GIVE_UP_S
    while any(one["NodeID"] == node.node_id and one["Alive"] for one in ray.nodes()):
        if time.monotonic() > until_s:
            raise TimeoutError(f"a drained node is there after {GIVE_UP_S:.0f} s")
        time.sleep(0.1)


def drained(nodes: Nodes) -> Any:
    """The first of them, which is to go."""
    node = nodes.nodes[0]
    nodes.drain(node)
    return node


def on(found: Where, node: Any) -> list[tuple[int, int]]:
    """Shards and replicas that are on a node."""
    return [place for place, (name, _) in found.items() if name == node.node_id]


def end_actors(service: Service) -> None:
    """They would stay for other front ends."""
    actors(service)._stop.set()  # it would make them again
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["namespace"] == actors(service).namespace:
            ray.kill(ray.get_actor(one["name"], one["namespace"]))


def test_the_last_that_can_answer_stays(tmp_path: Path, started: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas share a node; the second is moved only when the first has read its segments again."""
    monkeypatch.setattr(actors_module, "_PING_S", 3600.0)
    nodes, expected = of_count(started, 1), prepared(tmp_path)
    with serving(tmp_path, nodes, cluster_shards=1, cluster_replicas=2) as (_, service):
        while not ray.get(actors(service).actor(0, 1).lately.remote()):  # its first answers are late
            assert residues(service) == expected
        kill(service, 0, 0)
        before = until(service, lambda found: len(found[0]) == 1)
        nodes.nodes.append(nodes.add())
        actors(service).look()
        assert where(service) == before
        monkeypatch.setattr(fanout.secrets, "randbelow", lambda _: 0)  # the first is asked first
        assert residues(service) == expected
        actors(service).look()
        after = until(service, apart)
    assert after[0, 0] == before[0, 0]


def test_a_drained_node_is_left(tmp_path: Path, started: Nodes) -> None:
    """With one replica, searches wait until it is there; then Ray ends the node."""
    nodes, expected = of_count(started, 2), prepared(tmp_path)
    with serving(tmp_path, nodes, cluster_shards=2, cluster_wait_s=300.0) as (_, service):
        before = until(service, lambda found: len(set().union(*found)) == 2)
        with searched(service, expected):
            gone = drained(nodes)
            after = until(service, lambda found: set().union(*found) == {nodes.nodes[0].node_id})
            ended(gone)
    assert [place for place in before if before[place] != after[place]] == on(before, gone)


def test_two_front_ends_leave_a_drained_node(
    tmp_path: Path, started: Nodes, postgres: PostgresServer, s3: S3Server
) -> None:
    """With two replicas. Both front ends see what drains, and neither moves what is on the other node."""
    nodes = of_count(started, 2)
    shared = {"catalogue": postgres.new_database(), "segments": s3.new_bucket(), "cache_bytes": 0}
    shared |= {"cluster_shards": 2, "cluster_replicas": 2}
    with (
        serving(tmp_path / "a", nodes, **shared) as (address, one),
        serving(tmp_path / "b", nodes, **shared) as (_, other),
    ):
        filled(address, CollectionKey.generate(), "compact")
        before, expected = until(one, apart), residues(one)
        with searched(one, expected), searched(other, expected):
            gone = drained(nodes)
            after = until(one, lambda found: set().union(*found) == {nodes.nodes[0].node_id})
            ended(gone)
        assert where(other) == after
        assert [place for place in before if before[place] != after[place]] == on(before, gone)
        end_actors(one)


@pytest.mark.parametrize("change", ["more shards on more nodes", "another version"])
def test_another_front_end_takes_over(
    tmp_path: Path, started: Nodes, postgres: PostgresServer, s3: S3Server, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """It is started beside the first, clients move over, and the first one stops."""
    nodes = of_count(started, 1)
    shared = {"catalogue": postgres.new_database(), "segments": s3.new_bucket(), "cache_bytes": 0}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        address, old = first.enter_context(serving(tmp_path / "old", nodes, cluster_shards=1, **shared))
        filled(address, CollectionKey.generate(), "compact")
        expected = residues(old)
        first_searches = first.enter_context(searched(old, expected))
        shards = 1
        if change == "another version":
            monkeypatch.setattr(actors_module, "version", lambda _: "next")
        else:
            shards = 2
            nodes.nodes.append(nodes.add())
        _, new = stack.enter_context(serving(tmp_path / "new", nodes, cluster_shards=shards, **shared))
        namespaces = {actors(old).namespace, actors(new).namespace}
        assert len(namespaces) == (2 if change == "another version" else 1)
        with searched(new, expected) as searches:
            first_searches.more(3)
            first.close()  # its clients first
            searches.more(5)
        assert set().union(*nodes_of(where(new))) == {node.node_id for node in nodes.nodes}
        end_actors(old)
        end_actors(new)

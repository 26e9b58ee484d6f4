"""Where a shard's replicas belong, from what Ray says of its nodes; Ray itself need not run."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from he_server.cluster.nodes import Node, Nodes

ONE = {"CPU": 2.0, "GPU": 0.0}  #: what an actor takes


def nodes(free: Mapping[str, float], drained: str = "") -> Nodes:
    """Of four CPUs each, of which so many are free; the head has none."""
    usable = [Node(name, {"CPU": 4.0}, {"CPU": cpus}) for name, cpus in sorted(free.items())]
    return Nodes([Node("H", {}, {}), *usable], frozenset(drained))


@pytest.mark.parametrize(
    ("free", "first", "taken", "expected"),
    [
        ({"a": 4, "b": 4}, 0, "", "a"),
        ({"a": 4, "b": 4}, 1, "", "b"),
        ({"a": 4, "b": 4}, 2, "", "a"),
        ({"a": 4, "b": 4}, 0, "a", "b"),  # apart
        ({"a": 1, "b": 4}, 0, "", "b"),  # where there is room
        ({"a": 2, "b": 4}, 0, "", "b"),  # where there is more
        ({"a": 4, "b": 1}, 0, "a", "a"),  # together rather than not at all
        ({"a": 0, "b": 1}, 0, "", "b"),  # it waits for room there, or for Ray to find some
        ({}, 0, "", None),
    ],
)
def test_where_an_actor_is_made(free: dict[str, float], first: int, taken: str, expected: str | None) -> None:
    found = nodes(free).place(ONE, first, set(taken))
    assert (found.name if found else None) == expected


def test_actors_that_ray_has_not_counted_yet() -> None:
    there, made = nodes({"a": 4, "b": 4}), []
    for _ in range(5):
        node = there.place(ONE, 0, ())
        assert node is not None
        node.give(ONE)
        made.append(node.name)
    assert sorted(made[:4]) == ["a", "a", "b", "b"]
    assert there.misplaced({0: "a", 1: "a"}, ONE) is None  # no room is left


@pytest.mark.parametrize(
    ("where", "free", "drained", "expected"),
    [
        ("ab", {"a": 4, "b": 4, "c": 4}, "", None),
        ("aa", {"a": 4, "b": 4}, "", 1),
        ("aa", {"a": 4, "b": 1}, "", None),  # no room elsewhere
        ("aa", {"a": 4}, "", None),
        ("abb", {"a": 4, "b": 4}, "", None),  # both nodes have one
        ("aaa", {"a": 4, "b": 4, "c": 4}, "", 2),  # one after the other
        ("aab", {"a": 4, "b": 4, "c": 4}, "", 1),
        ("d", {"a": 4}, "d", 0),
        ("d", {"a": 1}, "d", None),
        ("da", {"a": 4}, "d", 0),  # rather together than on a node that goes
        ("ad", {"a": 4, "b": 4}, "d", 1),
        ("dd", {"a": 4, "b": 4}, "d", 1),
        ("de", {"a": 4, "b": 4}, "de", 1),
    ],
)
def test_which_replica_leaves(where: str, free: dict[str, float], drained: str, expected: int | None) -> None:
    assert nodes(free, drained).misplaced(dict(enumerate(where)), ONE) == expected


def test_one_that_does_not_reply_is_not_counted() -> None:
    assert nodes({"a": 4, "b": 4}).misplaced({1: "a"}, ONE) is None

"""Ray's nodes, and which of them a shard's replicas belong on: each on another one, and none on one that is drained.

Ray itself starts nothing on a node that is drained, but leaves there what runs, and ends the node when nothing does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray._private import state  # where Ray says what is drained and what is free, its own libraries ask, too

Resources = Mapping[str, float]  #: of Ray, by name; those of Ray itself are "CPU" and "GPU"


@dataclass(slots=True)
class Node:
    """A node that is alive and not drained."""

    name: str  #: Ray's id of it, hexadecimal
    total: Resources
    free: Resources

    def give(self, wanted: Resources) -> None:
        """To an actor that Ray has not counted yet."""
        self.free = {name: amount - wanted.get(name, 0.0) for name, amount in self.free.items()}


@dataclass(slots=True)
class Nodes:
    """All that there are, at one moment."""

    usable: Sequence[Node]  #: by name
    drained: Collection[str]  #: names of those that are alive and drained

    def place(self, wanted: Resources, first: int, taken: Collection[str]) -> Node | None:
        """Where an actor that takes so much is made: on a node with room and without another replica (`taken`), or
        with room, or that could have it; of such, that with the most free CPUs, or the first of these from the position
        `first` on (where several front ends begin at the same time, all count the same). None: there is none."""
        able = [node for node in self.usable if _fits(wanted, node.total)]
        turned = [able[(first + number) % len(able)] for number in range(len(able))]
        with_room = [node for node in turned if _fits(wanted, node.free)]
        apart = [node for node in with_room if node.name not in taken]
        return max(apart or with_room or turned, key=lambda node: node.free.get("CPU", 0.0), default=None)

    def misplaced(self, where: Mapping[int, str], wanted: Resources) -> int | None:
        """The replica that should leave its node, as there is a better one: where all, of one shard, are.

        Off a node that is drained, to any with room; off one that a replica with a smaller number is on, to one without
        any. Replica 0 is thus never moved because it has company, whoever decides, and the last number goes first."""
        roomy = {node.name for node in self.usable if _fits(wanted, node.free)}
        for replica in sorted(where, reverse=True):
            lower = {node for other, node in where.items() if other < replica}
            if where[replica] in self.drained and roomy:
                return replica
            if where[replica] in lower and roomy.difference(where.values()):
                return replica
        return None


def _fits(wanted: Resources, there: Resources) -> bool:
    return all(there.get(name, 0.0) >= amount for name, amount in wanted.items())


def present() -> Nodes:
    """Raises what Ray raises."""
    drained = set(state.state.get_draining_nodes())
    free = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    alive = {str(node["NodeID"]): node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    usable = [Node(name, alive[name], free.get(name, {})) for name in sorted(alive.keys() - drained)]
    return Nodes(usable, drained & alive.keys())

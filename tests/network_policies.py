"""Whether NetworkPolicies of one namespace let a connection through: what they say, for label selectors and ports.

A pod that no policy of a direction selects may do everything in it; one that some select, what any of them allows. A
connection needs its source's egress and its destination's ingress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Place:
    """A pod, or with `address` something outside of the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    unknown = selector.keys() - {"matchLabels", "matchExpressions"}
    assert not unknown, unknown
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "Exists", one
        if one["key"] not in labels:
            return False
    return True


def _is_peer(peer: Mapping[str, Any], place: Place, namespace: str) -> bool:
    if block := peer.get("ipBlock"):
        return bool(place.address) and ip_address(place.address) in ip_network(block["cidr"])
    if place.address:
        return False
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], {NAMESPACE: place.namespace}):
            return False
    elif place.namespace != namespace:
        return False
    return _selects(peer.get("podSelector", {}), place.labels)


def _allows(policies: Sequence[Mapping[str, Any]], of: Place, to: Place, port: int, kind: str, peers: str) -> bool:
    selecting = [
        policy["spec"]
        for policy in policies
        if kind.capitalize() in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], of.labels)
    ]
    if not selecting:
        return True
    for rule in (rule for spec in selecting for rule in spec.get(kind, [])):
        ports = [one["port"] for one in rule.get("ports", [])]
        among = not rule.get(peers) or any(_is_peer(peer, to, of.namespace) for peer in rule[peers])
        if among and (not ports or port in ports):
            return True
    return False


def reaches(policies: Sequence[Mapping[str, Any]], namespace: str, source: Place, to: Place, port: int) -> bool:
    """The policies are of `namespace`; other namespaces have none."""
    if source.namespace == namespace and not _allows(policies, source, to, port, "egress", "to"):
        return False
    return to.namespace != namespace or _allows(policies, to, source, port, "ingress", "from")

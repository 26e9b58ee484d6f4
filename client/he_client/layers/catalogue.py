"""The layers, from the text to the disk, and where each stands.

A layer of the server or the disk binds an honest server alone; one of the client or the network holds against any.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Place(Enum):
    TEXT = "your site, before a text is embedded"
    CLIENT = "the client's process"
    NETWORK = "between client and server"
    SERVER = "the server, if it is honest"
    DISK = "the server's disk, if the server is honest"

    @property
    def binds_honest_server_only(self) -> bool:
        return self in (Place.SERVER, Place.DISK)


@dataclass(frozen=True, slots=True)
class Layer:
    id: str
    title: str
    place: Place
    page: str  #: of docs/


LAYERS = {
    one.id: one
    for one in (
        Layer("text", "identifiers taken out of texts", Place.TEXT, "text.md"),
        Layer("privacy", "differential privacy of what is released", Place.TEXT, "privacy.md"),
        Layer("federated", "encrypted sums of models' updates", Place.CLIENT, "federated.md"),
        Layer("encryption", "encrypted vectors, queries, scores, payloads", Place.CLIENT, "scheme.md"),
        Layer("scores", "release of scores", Place.CLIENT, "score-release.md"),
        Layer("keys", "locked key files", Place.CLIENT, "keys.md"),
        Layer("verification", "verification of every answer", Place.CLIENT, "malicious.md"),
        Layer("pins", "pinned versions", Place.CLIENT, "architecture.md"),
        Layer("signatures", "commits signed by listed writers", Place.CLIENT, "threat-model.md"),
        Layer("payloads", "whole payload columns cached", Place.CLIENT, "architecture.md"),
        Layer("parsers", "strict parsers and limits", Place.CLIENT, "reliability.md"),
        Layer("copies", "shares of the key, archives, backups", Place.CLIENT, "operations.md"),
        Layer("tls", "TLS 1.3", Place.NETWORK, "access.md"),
        Layer("identity", "certificates or tokens", Place.SERVER, "access.md"),
        Layer("policies", "Cedar policies", Place.SERVER, "access.md"),
        Layer("quotas", "quotas", Place.SERVER, "access.md"),
        Layer("audit", "hash-chained audit log", Place.SERVER, "audit.md"),
        Layer("at_rest", "encryption at rest", Place.DISK, "store.md"),
    )
}

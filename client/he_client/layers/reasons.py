"""Why each layer is on, and what stays whatever is on."""

from __future__ import annotations

from he_client.layers import costs
from he_client.layers.answers import Answers, Callers, Disk, Engine, Leaves, Operator
from he_client.layers.threats import NEVER
from he_engine.params import Profile


def reason(layer: str, answers: Answers, engine: Engine, profile: Profile) -> str:
    """Of a chosen layer."""
    if layer == "encryption":
        kind = f"profile {profile.value}"
        if engine is Engine.TENSEAL:
            kind = f"engine tenseal, as asked for: × {costs.tenseal_ratio(Profile.EXACT):.0f} of the server's time"
        return f"the server must not read what it stores; {kind}"
    if layer == "scores":
        if engine is Engine.HINT and profile is Profile.EXACT:
            return "exact: scores are functions of integers alone, and may be shown"
        return "approximate scores are key material: keep them with holders of the key; the client counts and warns"
    if layer == "policies":
        shared = answers.callers is Callers.SEVERAL
        return "callers may not all do the same" if shared else "the ready roles, which come with TLS"
    if layer == "pins":
        return "the command line keeps the newest version seen of each collection; in Python `Client(…, state=…)`"
    return _REASONS[layer]


_REASONS = {
    "text": "texts identify people, and payloads and embeddings are made of them",
    "privacy": "others get vectors or models; ε and δ of the commands are an example",
    "federated": "sites train together; with differential privacy on top the model itself may be shown",
    "keys": "whoever has the key has everything",
    "verification": "always: wrong answers are worse than errors",
    "signatures": "not all who hold the key may write",
    "payloads": "the default: what is fetched tells nothing",
    "parsers": "always, on both sides",
    "copies": "a lost key is lost data, and a server can delete",
    "tls": "callers must be told apart, or others may listen",
    "identity": "with TLS every caller says who they are",
    "quotas": "callers share a server",
    "audit": "the default: every decision, before it is answered; export heads elsewhere",
    "at_rest": "a disk tells names, sizes and who did what",
}


def nothing_more(answers: Answers) -> tuple[str, ...]:
    """What stays whatever is done, and what the answers say besides."""
    spare = answers.operator is Operator.HONEST and answers.disk is Disk.SAFE and answers.leaves is Leaves.RAW
    said = "by your answers nothing needs encryption: a plaintext index is faster, and may be approximate"
    return (*NEVER, said) if spare else NEVER

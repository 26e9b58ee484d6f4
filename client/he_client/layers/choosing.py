"""From answers to layers: which are on and why, what they cover, what remains, and which wishes cannot be met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from he_client.layers import costs
from he_client.layers.answers import (
    Answers,
    Callers,
    Disk,
    Engine,
    Leaves,
    Network,
    Operator,
    Scores,
    Texts,
    Vectors,
    Writers,
)
from he_client.layers.catalogue import LAYERS
from he_client.layers.costs import Range
from he_client.layers.reasons import reason
from he_client.layers.threats import THREATS
from he_client.plan import Plan
from he_engine.params import Profile

ORDER = (Profile.EXACT, Profile.COMPACT, Profile.PRECISE)  #: of preference among those that do


@dataclass(frozen=True, slots=True)
class Unmet:
    wish: str
    because: str
    instead: str  #: what would meet it


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    answers: Answers
    engine: Engine
    profile: Profile  #: of the engine hint; under tenseal nothing is of it
    reasons: dict[str, str]  #: of each chosen layer, from the text to the disk
    covered: tuple[str, ...]  #: ids of threats
    remaining: dict[str, str]  #: ids of threats that the answers name, and why they are not covered
    aside: tuple[str, ...]  #: ids of threats that the answers rule out, and that no chosen layer covers
    unmet: tuple[Unmet, ...]
    overhead: Range  #: a query with the layers of `overhead_of` ÷ one with none
    overhead_of: tuple[str, ...]
    latency_ms: float | None  #: expected, where there is an estimate


def applying(answers: Answers) -> tuple[str, ...]:
    """Ids of the threats that the answers name."""
    a = answers
    looked_at, shared = a.operator is not Operator.HONEST, a.callers is Callers.SEVERAL
    named = {
        "identifiers": a.texts is Texts.IDENTIFIERS,
        "inversion": a.vectors is Vectors.OTHERS,
        "aggregator": a.vectors is Vectors.SITES,
        "curious": looked_at or a.disk is Disk.STOLEN or a.leaves is not Leaves.RAW,
        "found": looked_at,
        "released": True,
        "key_file": True,
        "lying": a.operator is Operator.HOSTILE,
        "rollback": a.operator is Operator.HOSTILE or a.disk is Disk.STOLEN,
        "writer": a.writers is Writers.LISTED,
        "bytes": True,
        "loss": True,
        "network": a.network is Network.OPEN,
        "unknown": a.authenticated,
        "known": shared,
        "greedy": shared,
        "denied": shared,
        "disk": a.disk is Disk.STOLEN,
    }
    return tuple(threat for threat in THREATS if named[threat])


def advise(answers: Answers, estimates: Mapping[Profile, Plan] | None = None) -> Advice:
    """What to do. estimates: of a query at each profile, without layers; without them no latency is promised."""
    unmet: list[Unmet] = []
    engine = _engine(answers, unmet)
    layers = _layers(answers, engine)
    latencies = {
        profile: expected_ms(plan, profile, engine, frozenset(layers)) for profile, plan in (estimates or {}).items()
    }
    profile = _profile(answers, engine, latencies, unmet)
    if latencies and answers.latency_ms is not None and latencies[profile] > answers.latency_ms:
        unmet.append(_too_slow(answers, engine, profile, latencies, (estimates or {})[profile]))
    unmet += _contradictions(answers)
    reasons = {id_: reason(id_, answers, engine, profile) for id_ in LAYERS if id_ in layers}
    remaining = {threat: why for threat in applying(answers) if (why := _why_not(threat, layers, answers))}
    covered = tuple(
        id_
        for id_, threat in THREATS.items()
        if id_ not in remaining and set(threat.by) <= layers and _bound(id_, answers)
    )
    overhead, of = costs.overhead(frozenset(layers), profile)
    return Advice(
        answers=answers,
        engine=engine,
        profile=profile,
        reasons=reasons,
        covered=covered,
        remaining=remaining,
        aside=tuple(id_ for id_ in THREATS if id_ not in covered and id_ not in remaining),
        unmet=tuple(unmet),
        overhead=overhead,
        overhead_of=of,
        latency_ms=latencies.get(profile),
    )


def expected_ms(plan: Plan, profile: Profile, engine: Engine, layers: frozenset[str]) -> float:
    """The model's latency, which has the verification in it, × what the other layers were measured to add.

    Under tenseal the server takes the measured multiple of its time.
    """
    all_of_them, _ = costs.overhead(layers, profile)
    verified, _ = costs.overhead(frozenset({"verification"}), profile)
    slower_s = plan.server_s * (costs.tenseal_ratio(Profile.EXACT) - 1) if engine is Engine.TENSEAL else 0.0
    return 1e3 * (plan.latency_s + slower_s) * max(1.0, all_of_them.value / verified.value)


# ---- what is chosen --------------------------------------------------------------------------------------
def _engine(answers: Answers, unmet: list[Unmet]) -> Engine:
    if answers.engine is Engine.HINT:
        return Engine.HINT
    against = {}
    if answers.operator is Operator.HOSTILE:
        against["it verifies no answer, so a lying server would go unseen"] = "a server that answers right"
    if answers.scores is Scores.EVERYBODY:
        against["its scores are key material"] = "scores for holders of the key alone"
    if not against:
        return Engine.TENSEAL
    because, instead = ", and ".join(against), ", and ".join(against.values())
    unmet.append(Unmet("engine tenseal", because, f"{instead}; until then the engine is hint"))
    return Engine.HINT


def _layers(answers: Answers, engine: Engine) -> set[str]:
    a = answers
    wanted = {
        "text": a.texts is Texts.IDENTIFIERS,
        "privacy": a.vectors is Vectors.OTHERS and a.leaves is not Leaves.NOTHING,
        "federated": a.vectors is Vectors.SITES and a.leaves is not Leaves.NOTHING,
        "verification": engine is Engine.HINT,
        "signatures": a.writers is Writers.LISTED,
        "tls": a.authenticated,
        "identity": a.authenticated,
        "policies": a.authenticated,
        "quotas": a.callers is Callers.SEVERAL,
        "at_rest": a.disk is Disk.STOLEN,
    }
    return {layer for layer in LAYERS if wanted.get(layer, True)}


def _profile(answers: Answers, engine: Engine, latencies: Mapping[Profile, float], unmet: list[Unmet]) -> Profile:
    """The first of ORDER whose scores may be seen by who sees them, with the recall, and within the latency."""
    if engine is Engine.TENSEAL:
        return Profile.EXACT
    allowed = [Profile.EXACT] if answers.scores is Scores.EVERYBODY else list(ORDER)
    wanted = answers.recall or 0.0
    right = [profile for profile in allowed if costs.recall(profile) >= wanted]
    if not right:
        best = max(allowed, key=costs.recall)
        instead = (
            "`precise`, with scores for holders of the key alone"
            if costs.recall(Profile.PRECISE) >= wanted
            else "nothing that is encrypted here"
        )
        because = f"`{best.value}`, the best whose scores everybody may see, had {costs.recall(best):.4f}"
        unmet.append(Unmet(f"recall@10 of {wanted:g}", because, instead))
        right = [best]
    if not latencies or answers.latency_ms is None:
        return right[0]
    fast = [profile for profile in right if latencies[profile] <= answers.latency_ms]
    return fast[0] if fast else min(right, key=lambda profile: latencies[profile])


# ---- what cannot be met ----------------------------------------------------------------------------------
_HELP = {
    "server": "a server that reads memory faster (`hesearch plan --server-gb-s`), or fewer rows in a collection",
    "link": "a faster link, or a client nearer to the server",
    "client": "a client with more cores, or fewer rows in a collection",
}


def _too_slow(
    answers: Answers, engine: Engine, profile: Profile, latencies: Mapping[Profile, float], plan: Plan
) -> Unmet:
    assert answers.latency_ms is not None
    name = engine.value if engine is Engine.TENSEAL else profile.value
    because = f"`{name}` is expected to take {latencies[profile]:.3g} ms; most of it is the {plan.limit}"
    others = [p for p in ORDER if p is not profile and latencies.get(p, answers.latency_ms + 1) <= answers.latency_ms]
    ways = [_HELP[plan.limit]]
    if engine is Engine.TENSEAL:
        ways.insert(0, "the engine hint")
    elif others:
        gives_up = "a lower recall" if answers.scores is Scores.HOLDERS else "scores for holders of the key alone"
        ways.insert(0, f"`{others[0].value}` ({latencies[others[0]]:.3g} ms), with {gives_up}")
    return Unmet(f"a query within {answers.latency_ms:g} ms", because, "; or ".join(ways))


def _contradictions(answers: Answers) -> list[Unmet]:
    found = []
    if answers.leaves is Leaves.NOTHING and answers.vectors is Vectors.OTHERS:
        found.append(
            Unmet(
                "nothing leaves, and others get vectors",
                "a vector with noise, or a model made of vectors, leaves as well",
                "let what is protected leave, or answer the others' questions by searches within the site",
            )
        )
    if answers.leaves is Leaves.NOTHING and answers.vectors is Vectors.SITES:
        found.append(
            Unmet(
                "nothing leaves, and sites train together",
                "what a site learnt leaves it, encrypted",
                "let what is protected leave, or bring the records to one site",
            )
        )
    if answers.leaves is Leaves.NOTHING and answers.network is Network.OPEN:
        found.append(
            Unmet(
                "nothing leaves, over a network",
                "ciphertexts go wherever the server is, and answers wherever a client is",
                "a server and clients within the site, behind its firewall, or all on one machine",
            )
        )
    if answers.writers is Writers.LISTED:
        found.append(
            Unmet(
                "listed writers, from the command line",
                "it commits as any holder of the key",
                "Python: Client(…, writer=…), for writers and owner alike (he_client.signing)",
            )
        )
    return found


# ---- what is covered -------------------------------------------------------------------------------------
def _bound(threat: str, answers: Answers) -> bool:
    """Whether who answers it is not who poses it: a hostile server ignores layers of its own."""
    layers = THREATS[threat].by
    return answers.operator is not Operator.HOSTILE or not any(
        LAYERS[layer].place.binds_honest_server_only for layer in layers
    )


def _why_not(threat: str, layers: set[str], answers: Answers) -> str:
    """Why a threat that applies is not covered; empty if it is."""
    missing = [LAYERS[layer].title for layer in THREATS[threat].by if layer not in layers]
    if missing:
        return f"not with these answers: {', '.join(missing)}"
    if not _bound(threat, answers):
        return "a hostile server ignores what it should enforce; contents stay encrypted under the collection's key"
    return ""

"""Parsers of what access control reads: keys of token issuers, tokens, policies, groups and quotas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from he_server.access.jwks import ALGORITHMS, KeySet
from he_server.access.policy import Policies
from he_server.access.policy_files import READY_ROLES, read_groups
from he_server.access.principals import Principal
from he_server.access.quota_table import read_quotas
from he_server.access.resources import Collection
from he_server.access.tokens import MAX_TOKEN_BYTES, Tokens
from tests.fuzz.formats import MIB
from tests.fuzz.mutate import mutate_json, mutate_text
from tests.fuzz.target import Target, scratch
from tests.identity_fixture import AUDIENCE, ISSUER, encoded, jwk, key_set

ADA = Principal("ada", "acme", frozenset({"searcher"}), "token")
EVE = Principal("eve", "other", frozenset({"owner", "searcher"}), "token")


# ---- keys of an issuer, and tokens ---------------------------------------------------------------------------
SIGNER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CURVE = ec.derive_private_key(0x5EED, ec.SECP256R1())


class _Public:
    """Of RSA, of a modulus that nobody has factored."""

    def public_key(self) -> rsa.RSAPublicKey:
        return rsa.RSAPublicNumbers(65537, (1 << 2048) - 159).public_key()


def _entries() -> list[dict[str, object]]:
    return [jwk(SIGNER, "EdDSA"), jwk(CURVE, "ES256", "two", alg="ES256"), jwk(_Public(), "RS256", "three")]


def jwks_target() -> Target:
    """The set is in a list of one member, so that the mutator of objects reaches every key."""

    def run(data: bytes) -> None:
        keys = KeySet(data)
        for kid in (None, "one", "two", "three"):
            if key := keys.find(kid):
                assert key.algorithms and set(key.algorithms) <= ALGORITHMS and key.public is not None

    def mutate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
        try:
            tree = json.loads(data)
            number = rng.randrange(len(tree["keys"]))
            tree["keys"][number] = json.loads(mutate_json(rng, json.dumps(tree["keys"][number]).encode(), others))
            changed = json.dumps(tree).encode()
        except (ValueError, TypeError, KeyError, RecursionError):
            changed = data
        return changed if rng.random() < 0.7 else mutate_json(rng, changed, others)

    samples = [key_set(*_entries()), *(key_set(one) for one in _entries())]
    return Target(name="jwks", run=run, samples=samples, mutate=mutate, limit_bytes=4 * MIB)


def token_target() -> Target:
    """`repair` signs what a token says now with the issuer's key."""

    class Published:
        keys = KeySet(key_set(*_entries()))
        find = keys.find

        def reload(self) -> None: ...

    tokens = Tokens(Published(), issuer=ISSUER, audience=AUDIENCE)

    def run(data: bytes) -> None:
        principal = tokens.principal(data.decode("latin-1"))
        assert principal.via == "token" and principal.groups <= {"searcher", "writer"} | principal.groups

    def mutate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
        parts = data.split(b".")
        if rng.random() < 0.2 or len(parts) != 3:
            return mutate_text(rng, data, others)
        number = rng.choice((0, 1, 1))
        text = jwt.utils.base64url_decode(parts[number])
        parts[number] = encoded(mutate_json(rng, text, [text])).encode()
        return b".".join(parts)

    def repair(data: bytes) -> bytes:
        signed = b".".join(data.split(b".")[:2])
        return signed + b"." + encoded(SIGNER.sign(signed)).encode()

    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "tenant": "acme", "exp": 1 << 32, "nbf": 1}
    samples = [
        jwt.encode(said | {"groups": ["searcher"], **more}, SIGNER, "EdDSA", headers={"kid": "one"})
        for more in ({}, {"iat": 1, "aud": [AUDIENCE, "x"]})
    ]
    return Target(
        name="token",
        run=run,
        samples=[sample.encode() for sample in samples],
        mutate=mutate,
        repair=repair,
        limit_bytes=32 * MAX_TOKEN_BYTES,  # a Python object for every two bytes of JSON
    )


# ---- what an operator writes ---------------------------------------------------------------------------------
def _in_a_folder(name: str, file: str, samples: list[bytes], read: Callable[[Path], None], cost: int = 1) -> Target:
    """Of a text file, in a folder of its own."""
    folder = scratch()

    def run(data: bytes) -> None:
        (folder / file).write_bytes(data)
        read(folder)

    return Target(
        name=name,
        run=run,
        samples=samples,
        mutate=mutate_text,
        limit_bytes=16 * MIB,
        cost=cost,
        close=lambda: shutil.rmtree(folder),
    )


def _load_policies(folder: Path) -> None:
    """Nobody gets into another tenant, whatever they say."""
    policies = Policies.load(folder)
    notes = Collection("acme", "notes", "ada", frozenset({("stage", "test")}))
    policies.decide(ADA, "ReadSegment", notes, "hint")
    for action in ("Search", "DropCollection"):
        assert not policies.decide(EVE, action, notes).allowed


def policies_target() -> Target:
    searcher = (READY_ROLES / "searcher.cedar").read_bytes()
    own = b"""@id("interns") // of ours; not others
permit (principal in Hesearch::Group::"intern", action in [Hesearch::Action::"Search"], resource)
when { resource.hasTag("stage") && resource.getTag("stage") == "test" && ["a;", "b"].contains(principal.name) };
@id("drop") forbid (principal, action == Hesearch::Action::"DropCollection", resource) unless { principal.via == "x" };
"""
    return _in_a_folder("policies", "changed.cedar", [searcher, own], _load_policies, 20)


def groups_target() -> Target:
    samples = [b'searcher = ["acme/ada", "acme/grace"]\nowner = ["acme/ada"]\n', b'"a.b@c" = ["x/y", "x/y.z"] # they\n']

    def read(folder: Path) -> None:
        for member, groups in read_groups(folder).items():
            tenant, _, name = member.partition("/")
            Principal(name, tenant, groups, "token")

    return _in_a_folder("groups", "groups.toml", samples, read)


def quotas_target() -> Target:
    def read(folder: Path) -> None:
        for share in read_quotas(folder / "quotas.toml").shares(ADA):
            assert share.quota.calls_per_s is None or share.quota.calls_per_s > 0
            assert share.quota.collections is None or 0 <= share.quota.collections < 1 << 63

    samples = [
        b"[principal]\ncalls_per_s = 50\nqueries_per_day = 10_000\n[tenant]\nbytes_per_day = 100\n",
        b"[tenants.acme]\ncollections = 2\n",
        b'[principals."acme/ada"]\nqueries_per_collection = 200\ncalls_per_s = 0.5\n',
    ]
    return _in_a_folder("quotas", "quotas.toml", samples, read)

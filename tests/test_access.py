"""Access, asked of a real server over TLS: tenants, roles, tokens, quotas, and what the audit log says of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from he_client import Client, CollectionKey
from he_client.cli import main
from he_engine.errors import HesearchError, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyError, Unauthenticated
from he_server.access.access import Caller
from he_server.access.dev_certificates import make
from he_server.access.opening import open_access, reloaders
from he_server.access.principals import Principal
from he_server.access.resources import Collection
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from tests.identity_fixture import AUDIENCE, jwk, key_set, signed
from tests.test_tokens import Served as OpenIdIssuer

ISSUER = "https://issuer.example"
ROWS = np.random.default_rng(3).normal(size=(20, 8))
PEOPLE = (
    "acme/ada:owner",
    "acme/will:writer",
    "acme/sam:searcher",
    "acme/otto:operator",
    "rival/eve:owner",
    "acme/nobody",
)


class World:
    """A server over TLS on loopback, and clients by name."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.certs = folder, folder / "certs"
        people = [argument for person in PEOPLE for argument in ("--client", person)]
        assert main(["certs", "dev", str(self.certs), *people]) == 0
        self.config = ServerConfig(
            data=folder / "data",
            listen="127.0.0.1:0",
            tls_cert=str(self.certs / "server.pem"),
            tls_key=str(self.certs / "server.key"),
            threads=1,
            **{"tls_client_ca": str(self.certs / "ca.pem"), **settings},
        )
        self.service = Service(self.config, access=open_access)
        self.server = GrpcServer(self.service)
        self._clients: list[Client] = []

    def client(self, who: str = "", token: Path | str = "") -> Client:
        cert = self.certs / "clients" / f"{who}.pem"
        shown = {"cert": cert, "key": cert.with_suffix(".key")} if who else {}
        target = f"localhost:{self.server.port}"
        self._clients.append(Client(target, ca=self.certs / "ca.pem", token=token, timeout_s=30, threads=1, **shown))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.server.stop(0)
        self.service.close()

    def audited(self, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
        """What is in the server's audit log, once it is closed and its chain is right."""
        self.close()
        capsys.readouterr()
        assert main(["audit", "verify", str(self.config.data)]) == 0
        capsys.readouterr()
        assert main(["audit", "show", str(self.config.data), "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [line for line in lines if line["log"] == "server"]


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def filled(world: World, key: CollectionKey, name: str = "notes", **options: Any) -> None:
    made = world.client("acme/ada").create_collection(name, dim=8, key=key, stride=256, **options)
    made.insert(range(20), ROWS)


def test_roles(world: World, key: CollectionKey) -> None:
    filled(world, key)
    found = world.client("acme/sam").open_collection("notes", key=key)
    assert found.search(ROWS[3], k=1)[0].id == 3
    with pytest.raises(PermissionDenied, match=r"CommitManifest|WriteSegment"):
        found.insert([99], ROWS[:1])
    with pytest.raises(PermissionDenied, match="DropCollection of collection 'notes': no policy lets acme/sam"):
        world.client("acme/sam").drop_collection("notes")
    written = world.client("acme/will").open_collection("notes", key=key)
    written.insert([50], ROWS[:1])
    with pytest.raises(PermissionDenied, match="Search"):
        written.search(ROWS[3], k=1)
    for who in ("acme/otto", "acme/nobody"):
        with pytest.raises(NotFound, match=r"^collection: there is no 'notes'"):
            world.client(who).open_collection("notes", key=key)


def test_a_tenant_learns_nothing_of_another(world: World, key: CollectionKey) -> None:
    """The same errors, whether there is such a collection or not; names are each tenant's own."""
    filled(world, key)
    eve = world.client("rival/eve")
    for act in (
        lambda name: eve.open_collection(name, key=key),
        lambda name: eve.describe(name),
        lambda name: eve.drop_collection(name),
        lambda name: eve.export_collection(name, world.folder / "stolen"),
    ):
        told = []
        for name in ("notes", "xotes"):
            with pytest.raises(HesearchError) as caught:
                act(name)
            told.append((type(caught.value), str(caught.value).replace(name, "NAME")))
        assert told[0] == told[1]
    assert eve.list_collections() == []
    eve.create_collection("notes", dim=8, key=key, stride=256)
    assert [one.name for one in eve.list_collections()] == ["notes"]
    assert eve.open_collection("notes", key=key).count() == 0
    assert world.client("acme/ada").open_collection("notes", key=key).count() == 20
    eve.drop_collection("notes")
    assert world.client("acme/ada").open_collection("notes", key=key).count() == 20


def test_nobody_calls_without_a_name(world: World) -> None:
    credentials = grpc.ssl_channel_credentials((world.certs / "ca.pem").read_bytes())
    with grpc.secure_channel(f"localhost:{world.server.port}", credentials) as channel:
        call = channel.unary_unary("/hesearch.v1.HeSearch/ListCollections")
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=10)


def test_every_decision_is_written_down(world: World, key: CollectionKey, capsys: pytest.CaptureFixture[str]) -> None:
    filled(world, key)
    found = world.client("acme/sam").open_collection("notes", key=key)
    found.search(ROWS[:3], k=1)
    with pytest.raises(PermissionDenied):
        world.client("acme/sam").drop_collection("notes")
    with pytest.raises(NotFound):
        world.client("rival/eve").describe("notes")
    lines = [line for line in world.audited(capsys) if "action" in line]
    said = [(line["principal"]["name"], line["action"], line["allowed"]) for line in lines]
    for expected in (("ada", "CreateCollection", True), ("ada", "WriteSegment", True), ("ada", "CommitManifest", True)):
        assert expected in said
    assert ("sam", "DropCollection", False) in said
    (search,) = [line for line in lines if line["action"] == "Search"]
    assert (search["queries"], search["resource"], search["policies"]) == (3, "Collection/acme/notes", ["searcher"])
    (spied,) = [line for line in lines if line["principal"]["tenant"] == "rival"]
    assert (spied["action"], spied["resource"], spied["allowed"]) == (
        "DescribeCollection", "Collection/rival/notes", False
    )  # fmt: skip
    parts = {line["part"] for line in lines if line["action"] == "ReadSegment"}
    assert parts and "index" not in parts, "a searcher needs no index"
    assert len({line["request_id"] for line in lines}) > 5


def test_nothing_is_answered_that_cannot_be_written_down(world: World, key: CollectionKey) -> None:
    filled(world, key)
    found = world.client("acme/sam").open_collection("notes", key=key)
    audit = world.service.access.audit
    assert audit is not None
    audit._failed(OSError("the disk is gone"))
    with pytest.raises(ReadOnlyError, match="audit log"):
        found.search(ROWS[3], k=1)
    with pytest.raises(ReadOnlyError, match="audit log"):
        world.client("acme/ada").drop_collection("notes")
    assert world.service.store.find("notes", tenant="acme")


# ---- tokens --------------------------------------------------------------------------------------------------
def test_a_token_says_who_calls(tmp_path: Path, key: CollectionKey) -> None:
    secret = ed25519.Ed25519PrivateKey.generate()
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(key_set(jwk(secret, "EdDSA")))
    settings = {"token_issuer": ISSUER, "token_audience": "hesearch", "token_jwks": str(jwks)}
    world = World(tmp_path, tls_client_ca="", **settings)

    def token(**changed: Any) -> Path:
        now = int(time.time())
        said = {"iss": ISSUER, "aud": "hesearch", "sub": "ada", "tenant": "acme", "groups": ["owner"], "iat": now,
                "exp": now + 600, **changed}  # fmt: skip
        (tmp_path / "token").write_text(jwt.encode(said, secret, "EdDSA", headers={"kid": "one"}) + "\n")
        return tmp_path / "token"

    try:
        client = world.client(token=token())
        client.create_collection("notes", dim=8, key=key, stride=256)
        token(groups=["searcher"])  # the file is read for each call
        with pytest.raises(PermissionDenied, match="no policy lets acme/ada"):
            client.drop_collection("notes")
        token(tenant="rival")
        assert client.list_collections() == []
        token(exp=int(time.time()) - 600)
        with pytest.raises(Unauthenticated):
            client.list_collections()
        with pytest.raises(Unauthenticated, match="neither a client certificate nor a token"):
            world.client().list_collections()
    finally:
        world.close()


def test_a_server_reads_its_issuers_keys(tmp_path: Path) -> None:
    """OpenID: nothing is configured but the issuer's address. A key that it withdraws is refused after a reload."""
    secrets = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    make(tmp_path / "issuer", [])
    issuer = OpenIdIssuer(tmp_path / "issuer")
    issuer.publish(jwk(secrets[0], "ES256"))
    settings = {"token_issuer": issuer.url, "token_audience": AUDIENCE, "token_ca": str(tmp_path / "issuer" / "ca.pem")}
    world = World(tmp_path, tls_client_ca="", **settings)

    def token(secret: ec.EllipticCurvePrivateKey, kid: str) -> Path:
        (tmp_path / "token").write_text(signed(secret, "ES256", kid, iss=issuer.url, groups=["owner"]))
        return tmp_path / "token"

    try:
        client = world.client(token=token(secrets[0], "one"))
        assert client.list_collections() == []
        assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]
        issuer.publish(jwk(secrets[1], "ES256", "two"))
        for reload in reloaders(world.service.access, world.config).values():
            reload()
        with pytest.raises(Unauthenticated, match="no key of its kid"):
            client.list_collections()
        token(secrets[1], "two")
        assert client.list_collections() == []
    finally:
        world.close()
        issuer.close()


# ---- policies, tags, quotas ----------------------------------------------------------------------------------
def test_policies_of_ones_own_ask_for_owners_and_tags(tmp_path: Path, key: CollectionKey) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "own.cedar").write_text(
        '@id("own") permit (principal, action, resource is Hesearch::Collection)\n'
        "when { resource.owner == principal };\n"
        '@id("test") permit (principal, action == Hesearch::Action::"DescribeCollection", resource)\n'
        'when { resource.hasTag("stage") && resource.getTag("stage") == "test" };\n'
        '@id("list") permit (principal, action == Hesearch::Action::"ListCollections", resource);\n'
    )
    world = World(tmp_path, policies=str(folder))
    try:
        filled(world, key, "mine")
        filled(world, key, "shown", tags={"stage": "test"})
        sam = world.client("acme/sam")
        assert [one.name for one in sam.list_collections()] == ["shown"]
        with pytest.raises(PermissionDenied):
            sam.drop_collection("shown")
        with pytest.raises(NotFound):
            sam.drop_collection("mine")
        (folder / "own.cedar").write_text("permit (principal, action, resource);")
        reload = reloaders(world.service.access, world.config)["policies"]
        with pytest.raises(HesearchError, match=r"own\.cedar"):
            reload()
        assert [one.name for one in sam.list_collections()] == ["shown"], "what does not load changes nothing"
        (folder / "own.cedar").write_text('@id("all") permit (principal, action, resource);')
        reload()
        assert [one.name for one in sam.list_collections()] == ["mine", "shown"]
        assert world.client("rival/eve").list_collections() == [], "own-tenant holds whatever a folder says"
    finally:
        world.close()


def test_quotas_bound_queries_and_collections(tmp_path: Path, key: CollectionKey) -> None:
    quotas = tmp_path / "quotas.toml"
    quotas.write_text('[principals."acme/sam"]\nqueries_per_day = 5\n[principal]\ncollections = 1\n')
    world = World(tmp_path, quotas=str(quotas))
    try:
        filled(world, key)
        found = world.client("acme/sam").open_collection("notes", key=key)
        found.search(ROWS[:4], k=1)
        with pytest.raises(QuotaExceeded, match="queries_per_day of principal acme/sam: 5 are allowed, 4 are used"):
            found.search(ROWS[:2], k=1)
        found.search(ROWS[0], k=1)
        with pytest.raises(QuotaExceeded, match="collections of principal acme/ada"):
            world.client("acme/ada").create_collection("more", dim=8, key=key, stride=256)
    finally:
        world.close()


def test_without_tls_everybody_on_the_machine_is_local(tmp_path: Path) -> None:
    config = ServerConfig(data=tmp_path, insecure=True, no_audit=True, threads=1)
    stranger = Caller(Principal("eve", "rival", frozenset(), "certificate"))
    with Service(config, access=open_access) as service:
        service.access.require(Caller(), "DropCollection", Collection("local", "notes", "loopback"))
        with pytest.raises(NotFound):
            service.access.require(stranger, "DropCollection", Collection("local", "notes", "loopback"))

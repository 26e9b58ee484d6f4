"""Whom a certificate names: exactly one principal, or nobody; and whom a server takes a caller for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_engine.errors import InvalidInput, Unauthenticated
from he_server.access.authentication import Authentication
from he_server.access.dev_certificates import make
from he_server.access.jwks import KeyFile
from he_server.access.principals import LOOPBACK, Principal, certificate_uri, from_certificate
from he_server.access.tokens import Tokens
from tests.identity_fixture import (
    AUDIENCE,
    CERTIFICATE_KEY,
    ISSUER,
    answering,
    jwk,
    key_set,
    pem,
    refused,
    shown,
    signed,
    who,
)

ALICE = Principal("alice", "acme", frozenset({"searchers", "auditors"}), "certificate")


# ---- names ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"name": "alice\n"}, "name"),
        ({"name": ".alice"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "älice"}, "name"),
        ({"tenant": "a" * 65}, "tenant"),
        ({"tenant": "a.b"}, "tenant"),
        ({"tenant": "-a"}, "tenant"),
        ({"groups": frozenset({"good", "no good"})}, "group"),
        ({"via": "guess"}, "via"),
    ],
)
def test_names_that_nobody_has(changed: dict[str, Any], field: str) -> None:
    good = {"name": "a" * 128, "tenant": "a" * 64, "groups": frozenset({"g@x.y-z_1"}), "via": "token"}
    assert str(Principal(**good)) == "a" * 64 + "/" + "a" * 128  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=f"^{field}: expected"):
        Principal(**{**good, **changed})


# ---- certificates --------------------------------------------------------------------------------------------
URI = "hesearch://acme/alice?group=searchers&group=auditors"
SUBJECT = "CN=alice,O=acme,OU=searchers,OU=auditors"


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        (pem("", URI), ALICE),
        (pem("CN=eve,O=evil,O=corp", URI), ALICE),
        (pem("", "spiffe://acme/eve", URI), ALICE),
        (pem(SUBJECT), ALICE),
        (pem(SUBJECT, "spiffe://acme/eve", dns="eve.example"), ALICE),
        (pem("", "hesearch://acme/alice"), Principal("alice", "acme", frozenset(), "certificate")),
    ],
)
def test_whom_a_certificate_names(certificate: bytes, expected: Principal) -> None:
    assert from_certificate(shown(certificate)) == expected


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (pem("", URI, "hesearch://acme/bob"), "got 2 hesearch URIs, expected one"),
        (pem("", URI, URI), "got 2 hesearch URIs, expected one"),
        (pem("", URI, "HeSearch:x"), "got 2 hesearch URIs, expected one"),
        *(
            (pem(SUBJECT, uri), "expected hesearch://TENANT/NAME")
            for uri in (
                "hesearch:acme/alice",
                "HESEARCH://acme/alice",
                "hesearch://acme/alice/bob",
                "hesearch://acme/alice#bob",
                "hesearch://acme/alice?",
                "hesearch://acme/alice?group=",
                "hesearch://acme/alice?group=a&",
                "hesearch://acme/alice?group=a;group=b=c",
                "hesearch://acme/alice?role=a",
                "hesearch:///alice",
                "hesearch://acme/",
            )
        ),
        (pem(SUBJECT, "hesearch://acme/al%69ce"), "name: expected"),
        (pem(SUBJECT, "hesearch://eve@acme/alice"), "tenant: expected"),
        (pem(SUBJECT, "hesearch://acme:1/alice"), "tenant: expected"),
        (pem(SUBJECT, "hesearch://acme/alice?group=a,b"), "group: expected"),
        (pem("", "hesearch://acme/alice?group=a&group=a"), "group: got one twice"),
        (pem("CN=alice,O=acme,OU=a,OU=a"), "group: got one twice"),
        (pem("CN=alice,CN=bob,O=acme"), "got 2 CN and 1 O, expected one of each"),
        (pem("CN=alice,O=acme,O=corp"), "got 1 CN and 2 O"),
        (pem("CN=alice"), "got 1 CN and 0 O"),
        (pem("O=acme"), "got 0 CN and 1 O"),
        (pem("", dns="hesearch"), "got 0 CN and 0 O"),
        (pem("CN=Alice Smith,O=acme"), "name: expected"),
        (pem(SUBJECT, ends=-timedelta(days=1)), "its time of validity is over"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "it cannot be read"),
    ],
)
def test_certificates_that_name_nobody(certificate: bytes, reason: str) -> None:
    with pytest.raises(Unauthenticated, match=r"^certificate: ") as caught:
        from_certificate(shown(certificate))
    assert reason in str(caught.value)
    assert "alice" not in str(caught.value).lower()


def test_no_certificate_and_two() -> None:
    assert from_certificate({"transport_security_type": [b"ssl"]}) is None
    with pytest.raises(Unauthenticated, match="got 2 of one connection"):
        from_certificate({"x509_pem_cert": [pem("", URI), pem(SUBJECT)]})


_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}", fullmatch=True)
_principals = st.builds(
    Principal,
    name=_names,
    tenant=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    groups=st.frozensets(_names, max_size=4),
    via=st.just("certificate"),
)


@given(_principals)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_principals_uri_names_that_principal(principal: Principal) -> None:
    assert from_certificate(shown(pem("", certificate_uri(principal)))) == principal


@given(st.lists(st.sampled_from(["a", "b", "/", "?", "&", "group=", "=", "@", ".", "%2f", ":", "#"]), max_size=12))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_two_uris_name_one_principal(parts: list[str]) -> None:
    """But for the order of groups: what is read, written again, is the URI that was read."""
    uri = "hesearch://a/b" + "".join(parts)
    try:
        principal = from_certificate(shown(pem("CN=eve,O=evil", uri)))
    except Unauthenticated:
        return
    assert principal is not None
    assert sorted(certificate_uri(principal)) == sorted(uri)
    assert certificate_uri(principal).partition("?")[0] == uri.partition("?")[0]


# ---- real connections ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make(folder, [ALICE])
    return folder


@pytest.fixture(scope="module")
def tokens(certs: Path) -> Tokens:
    (certs / "jwks.json").write_bytes(key_set(jwk(CERTIFICATE_KEY, "ES256")))
    return Tokens(KeyFile(str(certs / "jwks.json")), issuer=ISSUER, audience=AUDIENCE)


def _credentials(certs: Path, *, mutual: bool) -> grpc.ServerCredentials:
    pair = (certs / "server.key").read_bytes(), (certs / "server.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], (certs / "ca.pem").read_bytes(), mutual)


@pytest.fixture
def mutual(certs: Path, tokens: Tokens) -> Iterator[str]:
    with answering(Authentication(tokens), _credentials(certs, mutual=True)) as address:
        yield address


def test_a_certificate_or_a_token_says_who_calls(mutual: str, certs: Path) -> None:
    ca, cert = certs / "ca.pem", certs / "clients" / "acme" / "alice.pem"
    assert who(mutual, ca, cert) == "acme/alice auditors,searchers certificate"
    token = signed(CERTIFICATE_KEY, "ES256", sub="bob")
    assert who(mutual, ca, cert, f"Bearer {token}") == "acme/bob searchers token"
    assert who(mutual, ca, cert, f"bearer {token}") == "acme/bob searchers token"
    for values, reason in (
        ((f"Bearer {token}x",), "token: "),
        ((token,), "authorization: expected Bearer TOKEN"),
        (("Bearer",), "authorization: expected Bearer TOKEN"),
        ((f"Basic {token}",), "authorization: expected Bearer TOKEN"),
        ((f"Bearer {token}", f"Bearer {token}"), "authorization: got several entries"),
        ((f"Bearer {token}", "Basic x"), "authorization: got several entries"),
    ):
        code, said = refused(mutual, ca, cert, *values)
        assert code is grpc.StatusCode.UNAUTHENTICATED, "although the certificate is good"
        assert said.startswith(reason)
        assert token[:20] not in said


def test_a_servers_certificate_is_no_clients(mutual: str, certs: Path) -> None:
    code, _ = refused(mutual, certs / "ca.pem", certs / "server.pem")
    assert code is grpc.StatusCode.UNAVAILABLE, "the handshake fails"


def test_nobody_calls_over_tls_without_showing_something(certs: Path, tokens: Tokens) -> None:
    ca, token = certs / "ca.pem", signed(CERTIFICATE_KEY, "ES256")
    with answering(Authentication(tokens), _credentials(certs, mutual=False)) as address:
        assert who(address, ca, None, f"Bearer {token}") == "acme/alice searchers token"
        code, said = refused(address, ca)
        assert (code, said.startswith("got neither")) == (grpc.StatusCode.UNAUTHENTICATED, True)
    with answering(Authentication(), _credentials(certs, mutual=False)) as address:
        code, said = refused(address, ca, None, f"Bearer {token}")
        assert (code, said) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "token: this server takes none; call with a certificate",
        )


def test_without_tls_no_token_is_accepted(tokens: Tokens) -> None:
    with answering(Authentication(tokens)) as address:
        assert who(address) == f"{LOOPBACK}  loopback"
        code, said = refused(address, None, None, f"Bearer {signed(CERTIFICATE_KEY, 'ES256')}")
        assert (code, said.startswith("token: got it without TLS")) == (grpc.StatusCode.UNAUTHENTICATED, True)

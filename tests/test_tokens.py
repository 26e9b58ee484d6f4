"""Bearer tokens: the good ones name their caller; of all others none is accepted, and no reason quotes one."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from he_engine.errors import HesearchError, InvalidInput, Unauthenticated, Unavailable
from he_server.access import issuer as issuer_module
from he_server.access.authentication import open_tokens
from he_server.access.dev_certificates import make
from he_server.access.issuer import Issuer
from he_server.access.jwks import KeyFile, KeySet
from he_server.access.principals import Principal
from he_server.access.tokens import LEEWAY_S, MAX_TOKEN_BYTES, Tokens
from tests.identity_fixture import AUDIENCE, ISSUER, claims, encoded, jwk, key_set, signed

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
ALICE = Principal("alice", "acme", frozenset({"searchers"}), "token")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(jwk(EC, "ES256"), jwk(RSA, "RS256", "two", alg="RS256")))
    return path


@pytest.fixture
def tokens(keys: Path) -> Tokens:
    return open_tokens(jwks=str(keys), issuer=ISSUER, audience=AUDIENCE)


def _refused(tokens: Tokens, token: str) -> str:
    """Why. Whatever it is, no piece of the token is in it."""
    with pytest.raises(Unauthenticated, match=r"^token: ") as caught:
        tokens.principal(token)
    said = str(caught.value)
    assert not any(len(piece) > 8 and piece in said for piece in token.split("."))
    assert caught.value.__cause__ is None, "a log would quote it"
    return said


# ---- signatures ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "algorithm", "members"),
    [
        *((RSA, name, {}) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        (RSA, "PS256", {"alg": "PS256", "key_ops": ["verify"]}),
        (EC, "ES256", {}),
        (ec.generate_private_key(ec.SECP384R1()), "ES384", {}),
        (ec.generate_private_key(ec.SECP521R1()), "ES512", {}),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA", {}),
    ],
)
def test_every_algorithm_of_the_list(tmp_path: Path, key: Any, algorithm: str, members: dict[str, Any]) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(jwk(key, algorithm, **members)))
    tokens = Tokens(KeyFile(str(path)), issuer=ISSUER, audience=AUDIENCE)
    good = signed(key, algorithm)
    assert tokens.principal(good) == ALICE
    assert tokens.principal(signed(key, algorithm, None)) == ALICE, "there is one key only"
    head, _, signature = good.split(".")
    forged = encoded({**claims(), "sub": "eve"})
    assert "signature is wrong" in _refused(tokens, f"{head}.{forged}.{signature}")


def _forged(header: dict[str, Any], secret: bytes = b"") -> str:
    """Signed with HMAC under `secret`, or not at all."""
    signed = f"{encoded({'kid': 'two', **header})}.{encoded(claims())}"
    digest = {"HS256": hashlib.sha256, "HS512": hashlib.sha512}.get(str(header.get("alg")))
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), digest)) if digest else ''}"


def test_no_signature_and_one_with_the_public_key_as_a_secret(tokens: Tokens) -> None:
    for algorithm in ("none", "None", "NONE", "", "RS1", "ES256K"):
        assert "its algorithm is none of" in _refused(tokens, _forged({"alg": algorithm}))
    for header in ({}, {"alg": None}, {"alg": ["RS256"]}, {"alg": {"RS256": 1}}):
        assert "its algorithm is none of" in _refused(tokens, _forged(header))
    public = RSA.public_key()
    for encoding in (Encoding.PEM, Encoding.DER):
        secret = public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        for algorithm in ("HS256", "HS512"):
            assert "its algorithm is none of" in _refused(tokens, _forged({"alg": algorithm}, secret))


def test_a_key_serves_its_own_algorithm_only(tokens: Tokens) -> None:
    assert tokens.principal(signed(RSA, "RS256", "two")) == ALICE
    for token in (signed(RSA, "PS256", "two"), signed(RSA, "RS512", "two"), signed(EC, "ES256", "two")):
        assert _refused(tokens, token) == "token: its algorithm is not that of its key"
    assert _refused(tokens, signed(RSA, "RS256")) == "token: its algorithm is not that of its key"


def test_nothing_in_a_token_says_where_its_key_is(tokens: Tokens) -> None:
    public = jwk(OTHER, "ES256")
    for headers in ({"jwk": public}, {"jku": "https://127.0.0.1:1/"}, {"x5u": "https://127.0.0.1:1/"}, {"x5c": ["AA"]}):
        assert _refused(tokens, signed(OTHER, "ES256", headers=headers)) == "token: its signature is wrong"
        assert tokens.principal(signed(EC, "ES256", headers=headers)) == ALICE
    assert "no key of its kid" in _refused(tokens, signed(EC, "ES256", "../../etc/passwd"))
    assert "no key of its kid" in _refused(tokens, signed(EC, "ES256", None)), "there are two keys"


# ---- claims --------------------------------------------------------------------------------------------------
YESTERDAY, TOMORROW = (int(time.time()) + days * 86_400 for days in (-1, 1))  #: the suite may take long


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": YESTERDAY}, "it has expired; get a new one"),
        ({"nbf": TOMORROW}, "it is not valid yet"),
        ({"iat": TOMORROW}, "it is not valid yet"),
        ({"aud": "elsewhere"}, "it is for another audience than this server's"),
        ({"aud": ["another", AUDIENCE + "x"]}, "it is for another audience than this server's"),
        ({"aud": {AUDIENCE: 1}}, "it is for another audience than this server's"),
        ({"iss": ISSUER + "/"}, "it is another issuer's"),
        *(({name: None}, f"it has no claim {name}") for name in ("exp", "iss", "aud", "sub")),
        ({"nbf": None}, "it has no claim nbf, nor iat in its place"),
        ({"exp": "soon"}, "it is malformed"),
        ({"exp": float("inf")}, "it is malformed"),
        ({"nbf": float("nan")}, "it is malformed"),
        ({"sub": 7}, "it is malformed"),
        ({"sub": "al/ice"}, "name: expected"),
        ({"sub": ""}, "name: expected"),
        ({"tenant": None}, "its claim tenant is missing, or no text"),
        ({"tenant": ["acme"]}, "its claim tenant is missing, or no text"),
        ({"tenant": "a.b"}, "tenant: expected"),
        ({"groups": "searchers"}, "its claim groups is no list of texts"),
        ({"groups": ["searchers", 1]}, "its claim groups is no list of texts"),
        ({"groups": ["/searchers"]}, "group: expected"),
        ({"cnf": {"x5t#S256": "AA"}}, "it is bound to a key (cnf)"),
    ],
)
def test_claims_that_are_refused(tokens: Tokens, changed: dict[str, Any], reason: str) -> None:
    said = _refused(tokens, signed(EC, "ES256", **changed))
    assert said.startswith(f"token: {reason}")
    assert not any(str(value) in said for value in changed.values() if isinstance(value, str) and value)


def test_claims_that_are_accepted(tokens: Tokens) -> None:
    now = int(time.time())
    for changed in (
        {"exp": now - LEEWAY_S + 20, "nbf": now + LEEWAY_S - 20},
        {"nbf": None, "iat": now},
        {"aud": ["another", AUDIENCE]},
        {"groups": ["searchers", "searchers"]},
        {"role": "admin", "scope": "x"},
    ):
        assert tokens.principal(signed(EC, "ES256", **changed)) == ALICE
    assert tokens.principal(signed(EC, "ES256", groups=None)).groups == frozenset()


def test_the_claims_may_have_other_names(keys: Path) -> None:
    names = {"tenant_claim": "https://acme/org", "groups_claim": "roles"}
    tokens = open_tokens(jwks=str(keys), issuer=ISSUER, audience=AUDIENCE, **names)
    said: dict[str, Any] = {"tenant": "evil", "groups": ["x"], "https://acme/org": "acme", "roles": ["searchers"]}
    assert tokens.principal(signed(EC, "ES256", **said)) == ALICE
    for missing in ("issuer", "audience", "tenant_claim", "groups_claim"):
        with pytest.raises(InvalidInput, match="tokens: got no issuer"):
            open_tokens(jwks=str(keys), **{"issuer": ISSUER, "audience": AUDIENCE, **names, missing: ""})


# ---- shapes --------------------------------------------------------------------------------------------------
def test_malformed_tokens(tokens: Tokens) -> None:
    good = signed(EC, "ES256")
    head, body, signature = good.split(".")
    deep = encoded(b'{"alg":"ES256","kid":' + b"[" * 3000)
    for token in (
        "", ".", "..", "...", "x", head, f"{head}.{body}", f"{head}.{body}.", f".{body}.{signature}",
        f"{good}.{signature}", f" {good}", f"{good}\n", f"{head}.{body}.{signature}=", f"{head}.{body}.*",
        f"{deep}.{body}.{signature}", f"{encoded([1])}.{body}.{signature}", f"{encoded(b'{')}.{body}.{signature}",
        "\ud800", "ü" * 20, f"{encoded({'alg': 'ES256', 'kid': 7})}.{body}.{signature}",
    ):  # fmt: skip
        _refused(tokens, token)
    deep_body = jwt.api_jws.encode(b'{"a":' + b"[" * 3000, EC, "ES256", headers={"kid": "one"})
    for token in (deep_body, jwt.api_jws.encode(b"[]", EC, "ES256", headers={"kid": "one"})):
        assert _refused(tokens, token) == "token: it is malformed"


def test_a_token_of_another_kind(tokens: Tokens) -> None:
    for kind in ("at+jwt", "application/at+jwt", "jwt"):
        assert tokens.principal(signed(EC, "ES256", headers={"typ": kind})) == ALICE
    for kind in ("logout+jwt", "dpop+jwt", "secevent+jwt"):
        assert "its typ is another" in _refused(tokens, signed(EC, "ES256", headers={"typ": kind}))
    assert _refused(tokens, signed(EC, "ES256", headers={"crit": ["exp2"], "exp2": 1})) == "token: it is malformed"


def test_the_size_is_limited(tokens: Tokens) -> None:
    short = signed(EC, "ES256", padding="x")
    longest = next(
        token
        for n in range(8000)
        if len(token := signed(EC, "ES256", padding="x" * ((MAX_TOKEN_BYTES - len(short)) * 3 // 4 + 2 - n)))
        <= MAX_TOKEN_BYTES
    )
    assert len(longest) > MAX_TOKEN_BYTES - 4
    assert tokens.principal(longest) == ALICE
    assert "expected at most 8192" in _refused(tokens, longest + "xxxx")


# ---- key sets ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "something else than a JSON Web Key Set"),
        (b"\xff", "something else than a JSON Web Key Set"),
        (b"[]", "something else than a JSON Web Key Set"),
        (b'{"keys": 1}', "something else than a JSON Web Key Set"),
        (b'{"keys": ["x"]}', "something else than a JSON Web Key Set"),
        (b'{"keys": ' + b"[" * 100_000, "something else than a JSON Web Key Set"),
        (key_set(), "got no key for signatures"),
        (key_set(jwk(EC, "ES256", use="enc")), "got no key for signatures"),
        (key_set(jwk(EC, "ES256", key_ops=["sign"])), "got no key for signatures"),
        (key_set(jwk(EC, "ES256", alg="ES384")), "got no key for signatures"),
        (key_set(jwk(EC, "ES256", alg="HS256")), "got no key for signatures"),
        (key_set(jwk(EC, "ES256", x="AA")), "got no key for signatures"),
        (key_set(jwk(EC, "ES256", kid=7)), "got no key for signatures"),
        (key_set(jwk(rsa.generate_private_key(65537, 1024), "RS256")), "got no key for signatures"),
        (key_set(jwk(EC, "ES256"), jwk(RSA, "RS256")), "two keys of one kid"),
        (key_set(jwk(EC, "ES256", None), jwk(RSA, "RS256", None)), "two keys of one kid"),
        (key_set(jwk(EC, "ES256"), {"kty": "oct", "k": "c2VjcmV0"}), "got a private or symmetric key"),
        (key_set(jwk(EC, "ES256", d="AAAA")), "got a private or symmetric key"),
    ],
)
def test_key_sets_that_are_refused(text: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"^jwks: .*{reason}"):
        KeySet(text)


def test_what_cannot_be_used_is_passed_over() -> None:
    unknown: dict[str, Any] = {"kty": "AKP", "kid": "one"}
    keys = KeySet(key_set(unknown, {"kty": ["EC"]}, {"kty": "EC", "crv": {}}, jwk(EC, "ES256"), {}))
    assert keys.find("one") == keys.find(None)
    assert keys.find("two") is None


def test_a_key_file_is_read_again(keys: Path, tokens: Tokens) -> None:
    old, new = signed(EC, "ES256"), signed(OTHER, "ES256", "three")
    keys.write_bytes(b"half of a")
    with pytest.raises(InvalidInput, match="something else"):
        tokens.reload()
    assert tokens.principal(old) == ALICE
    keys.write_bytes(key_set(jwk(OTHER, "ES256", "three")))
    tokens.reload()
    assert tokens.principal(new) == ALICE
    _refused(tokens, old)
    keys.unlink()
    with pytest.raises(InvalidInput, match="the file cannot be read: No such file") as caught:
        KeyFile(str(keys))
    assert str(keys) not in str(caught.value)


# ---- an issuer -----------------------------------------------------------------------------------------------
class Served:
    """An OpenID issuer on this machine: what `pages` says of a path, (status, body); counts what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.pages: dict[str, tuple[int, bytes]] = {}
        self.holding = threading.Event()  #: cleared: answers wait for it
        self.holding.set()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.asked.append(self.path)
                served.holding.wait(20)
                status, body = served.pages.get(self.path, (404, b""))
                self.send_response(status)
                self.send_header("Location", f"{served.url}/keys")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.publish(jwk(EC, "ES256"))

    def publish(self, *entries: dict[str, Any], **changed: Any) -> None:
        said = {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **changed}
        self.pages["/.well-known/openid-configuration"] = (200, json.dumps(said).encode())
        self.pages["/keys"] = (200, key_set(*entries))

    def close(self) -> None:
        self.holding.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make(folder, [])
    return folder


@pytest.fixture
def served(certs: Path) -> Iterator[Served]:
    served = Served(certs)
    yield served
    served.close()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer(served: Served, certs: Path, clock: Clock) -> Issuer:
    return Issuer(served.url, str(certs / "ca.pem"), clock=clock)


READ = ["/.well-known/openid-configuration", "/keys"]


def test_the_keys_of_an_issuer(served: Served, certs: Path) -> None:
    tokens = open_tokens(issuer=served.url, ca=str(certs / "ca.pem"), audience=AUDIENCE)
    assert served.asked == [], "a server starts without its issuer"
    token = signed(EC, "ES256", iss=served.url)
    assert [tokens.principal(token) for _ in range(3)] == [ALICE] * 3
    assert served.asked == READ, "once"
    assert _refused(tokens, signed(EC, "ES256")) == "token: it is another issuer's"


def test_a_new_key_is_fetched_when_it_is_needed_but_not_at_anyones_wish(
    served: Served, issuer: Issuer, clock: Clock
) -> None:
    tokens = Tokens(issuer, issuer=served.url, audience=AUDIENCE)
    old, new = signed(EC, "ES256", iss=served.url), signed(OTHER, "ES256", "two", iss=served.url)
    assert tokens.principal(old) == ALICE
    served.publish(jwk(OTHER, "ES256", "two"))
    for _ in range(20):
        _refused(tokens, new)
    assert served.asked == READ, "within the pause nobody makes it ask again"
    clock.now += issuer_module.PAUSE_S
    for algorithm in ("none", "HS256"):
        _refused(tokens, _forged({"alg": algorithm, "kid": "two"}))
    assert served.asked == READ, "nor does a token that no key could help"
    assert tokens.principal(new) == ALICE
    assert served.asked == READ * 2
    assert "no key of its kid" in _refused(tokens, old)
    assert served.asked == READ * 2


def test_known_keys_go_on_while_they_are_read_again(served: Served, issuer: Issuer, clock: Clock) -> None:
    assert issuer.find("one") is not None
    clock.now += issuer_module.REFRESH_S
    served.publish(jwk(OTHER, "ES256", "two"))
    served.holding.clear()
    assert issuer.find("one") is not None, "although the issuer does not answer"
    assert issuer.find("one") is not None
    with pytest.raises(Unavailable, match="try again later"):
        issuer.find("two")
    served.holding.set()
    deadline = time.monotonic() + 20
    while issuer.find("one") is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert issuer.find("one") is None, "withdrawn"
    assert issuer.find("two") is not None
    assert served.asked == READ * 2


def test_an_issuer_that_is_away(served: Served, issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    assert issuer.find("one") is not None
    pages, served.pages = served.pages, {}
    clock.now += issuer_module.PAUSE_S
    for _ in range(3):
        with pytest.raises(Unavailable, match="try again later"):
            issuer.find("two")
    assert len(served.asked) == 3, "one more"
    assert issuer.find("one") is not None
    with pytest.raises(Unavailable, match="got status 404"):
        issuer.reload()
    clock.now += issuer_module.MAX_AGE_S
    with pytest.raises(Unavailable):
        issuer.find("one")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    served.pages = pages
    issuer.reload()
    assert issuer.find("one") is not None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"issuer": "https://another.example"}, "its configuration is another issuer's"),
        ({"jwks_uri": None}, "jwks_uri is no text"),
        ({"jwks_uri": "http://localhost/keys"}, "jwks_uri: expected https://"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri: expected https://"),
        ({"jwks_uri": "https://user@localhost/keys"}, "jwks_uri: expected https://"),
        ({"jwks_uri": "https://localhost:99999/keys"}, "jwks_uri: got something else than a URL"),
        ({"jwks_uri": "https://localhost/a b\r\nX: y"}, "no answer over HTTPS"),
        ({"jwks_uri": "https://localhost/ü"}, "no answer over HTTPS"),
    ],
)
def test_configurations_that_are_refused(served: Served, issuer: Issuer, changed: dict[str, Any], reason: str) -> None:
    served.publish(jwk(EC, "ES256"), **changed)
    with pytest.raises(HesearchError, match=reason):
        issuer.reload()
    with pytest.raises(Unavailable, match="try again later"):
        issuer.find("one")


def test_answers_that_are_refused(served: Served, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration, keys = READ
    good = served.pages[keys]
    for path, answer, reason in (
        (configuration, (200, b"{"), "no JSON object"),
        (configuration, (200, b"[]"), "no JSON object"),
        (keys, (302, b""), "got status 302"),
        (keys, (500, good[1]), "got status 500"),
        (keys, (200, b"[" * ((1 << 20) + 1)), "expected 200, 1048576"),
        (keys, (200, b"{}"), "jwks: got something else"),
    ):
        served.publish(jwk(EC, "ES256"))
        served.pages[path] = answer
        with pytest.raises(HesearchError, match=reason):
            issuer.reload()
    monkeypatch.setattr(issuer_module, "_TIMEOUT_S", 0.05)
    served.publish(jwk(EC, "ES256"))
    served.holding.clear()
    with pytest.raises(Unavailable, match=r"no answer over HTTPS \(TimeoutError\)"):
        issuer.reload()


def test_an_issuer_of_another_authority(served: Served, tmp_path: Path) -> None:
    make(tmp_path, [])
    for ca in ("", str(tmp_path / "ca.pem")):
        with pytest.raises(Unavailable, match=r"no answer over HTTPS \(SSLCertVerificationError\)"):
            Issuer(served.url, ca).reload()
    assert served.asked == []


def test_what_an_issuer_may_be() -> None:
    for url in (
        "http://localhost",
        "localhost",
        "https://",
        "https://a@b",
        "https://a?b",
        "https://a#b",
        "https://a:b",
    ):
        with pytest.raises(InvalidInput, match=r"^issuer: "):
            Issuer(url)
    for ca in ("/nowhere", __file__):
        with pytest.raises(InvalidInput, match=r"^issuer ca: "):
            Issuer("https://localhost", ca)

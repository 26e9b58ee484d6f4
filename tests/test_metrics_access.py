"""Metrics that others can reach: over TLS alone, to whom policies let read them, each request one line."""

from __future__ import annotations

import contextlib
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from he_server.observe import endpoint as module
from he_server.observe.endpoint import MetricsEndpoint
from he_server.observe.metrics import Metrics
from tests.identity_fixture import jwk, key_set, signed
from tests.test_access import ISSUER, World

SIGNER = ed25519.Ed25519PrivateKey.generate()


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is taken for an address that others reach; all else is real."""
    monkeypatch.setattr(module, "is_loopback", lambda *_: False)


@contextlib.contextmanager
def serving(world: World) -> Iterator[str]:
    metrics = Metrics()
    metrics.watch(world.service)
    config = world.config
    object.__setattr__(config, "metrics", "127.0.0.1:0")
    with MetricsEndpoint(config, metrics.registry, world.service.access) as endpoint:
        yield f"https://localhost:{endpoint.address.rpartition(':')[2]}/metrics"


def _context(world: World, who: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(world.certs / "ca.pem"))
    if who:
        cert = world.certs / "clients" / f"{who}.pem"
        context.load_cert_chain(cert, cert.with_suffix(".key"))
    return context


def scrape(world: World, url: str, who: str = "", token: str = "") -> int:
    """The status. Raises OSError where the handshake fails."""
    context = _context(world, who)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            assert b"hesearch_collections" in answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            assert b"hesearch_" not in error.read()
            return error.code


def test_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path, operating_tenant="acme")
    with serving(world) as url:
        assert scrape(world, url, "acme/otto") == 200
        for who in ("acme/sam", "acme/ada", "rival/eve", "acme/nobody"):
            assert scrape(world, url, who) == 403
        with pytest.raises(OSError, match=r"(?i)certificate|reset|eof|closed|pipe"):
            scrape(world, url)
        with pytest.raises((OSError, HTTPException), match=r"."):  # cut off, or an alert that is no HTTP
            urllib.request.urlopen(url.replace("https", "http"), timeout=60)
    lines = [line for line in world.audited(capsys) if line["kind"] == "entry"]
    assert [(line["action"], line["resource"], line["allowed"]) for line in lines] == [
        ("ReadMetrics", "Server", who == "otto") for who in ("otto", "sam", "ada", "eve", "nobody")
    ]
    assert lines[0]["policies"] == ["operator"] and lines[0]["principal"]["name"] == "otto"


def test_operators_of_another_tenant_read_none(tmp_path: Path) -> None:
    world = World(tmp_path, operating_tenant="rival")
    try:
        with serving(world) as url:
            assert scrape(world, url, "acme/otto") == 403
    finally:
        world.close()


def test_tokens(tmp_path: Path) -> None:
    (tmp_path / "jwks").write_bytes(key_set(jwk(SIGNER, "EdDSA")))
    taking = {"token_issuer": ISSUER, "token_audience": "hesearch", "token_jwks": str(tmp_path / "jwks")}
    world = World(tmp_path, operating_tenant="acme", tls_client_ca="", **taking)
    try:
        with serving(world) as url:
            assert scrape(world, url) == 401
            assert scrape(world, url, token=signed(SIGNER, "EdDSA", groups=["operator"])) == 200
            assert scrape(world, url, token=signed(SIGNER, "EdDSA", groups=["searcher"])) == 403
            assert scrape(world, url, token=signed(SIGNER, "EdDSA", groups=["operator"], exp=1)) == 401
    finally:
        world.close()


def test_who_only_connects_has_no_more_than_the_places_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    monkeypatch.setattr(module, "_REQUEST_S", 600.0)
    world = World(tmp_path, operating_tenant="acme")
    with serving(world) as url, contextlib.ExitStack() as opened:
        address = ("127.0.0.1", int(url.split(":")[2].partition("/")[0]))
        first, _, third = (opened.enter_context(socket.create_connection(address, 30)) for _ in range(3))
        assert third.recv(1) == b""  # closed; TimeoutError where a thread waits for it to speak
        first.close()
        status = 0
        while not status:  # until its thread has seen that and given the place back
            with contextlib.suppress(OSError, HTTPException):
                status = scrape(world, url, "acme/otto")
        assert status == 200


@pytest.mark.parametrize("where", ["plaintext", "handshake", "request"])
def test_who_sends_a_byte_now_and_then_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """A tenth of a second passes between two bytes, so no single wait is too long."""
    monkeypatch.setattr(module, "is_loopback", lambda *_: where == "plaintext")
    monkeypatch.setattr(module, "_REQUEST_S", 1.0)
    world = World(tmp_path, operating_tenant="acme")
    with serving(world) as url, contextlib.ExitStack() as opened:
        address = ("127.0.0.1", int(url.split(":")[2].partition("/")[0]))
        slow = opened.enter_context(socket.create_connection(address, 30))
        if where == "request":
            slow = opened.enter_context(_context(world, "acme/otto").wrap_socket(slow, server_hostname="localhost"))
        begun = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"  # a ClientHello of 16 KiB
        slow.sendall(begun if where == "handshake" else b"GET /metrics HTTP/1.0\r\nUser-Agent: ")
        slow.settimeout(0.1)
        assert _is_cut_off(slow)
    assert not capsys.readouterr().err, "and nobody writes where it came from"


def _is_cut_off(slow: socket.socket) -> bool:
    for _ in range(100):
        try:
            slow.sendall(b"a")
            return slow.recv(1) == b""
        except TimeoutError:
            continue
        except OSError:
            return True
    return False

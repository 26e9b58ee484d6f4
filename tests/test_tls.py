"""TLS: who is trusted and who is not, on both sides; certificates that are replaced while the server runs."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from he_client import Client, transport
from he_engine.errors import InvalidInput, Unavailable
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.rpc.tls import Certificates
from he_server.service import Service
from tests.test_server_cli import Served
from tests.tls_fixture import Authority, Pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


@pytest.fixture
def trusted(authority: Authority) -> dict[str, Any]:
    """What a client is given that the server trusts."""
    known = authority.issue("client")
    return {"ca": authority.ca, "cert": known.cert, "key": known.key}


@pytest.fixture(autouse=True)
def _fail_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_ATTEMPTS", 2)


@contextlib.contextmanager
def _serving(folder: Path, pair: Pair, **settings: Any) -> Iterator[GrpcServer]:
    """On a wildcard address, which plaintext may not use; with TLS it may."""
    config = ServerConfig(
        data=folder / "data", listen="0.0.0.0:0", tls_cert=str(pair.cert), tls_key=str(pair.key),
        tls_client_ca=str(folder / "authority.pem"), threads=1, **settings,
    )  # fmt: skip
    with Service(config) as service:
        server = GrpcServer(service)
        try:
            yield server
        finally:
            server.stop(0)


def _target(server: GrpcServer) -> str:
    return f"127.0.0.1:{server.port}"


def _serial(port: int) -> int:
    """Of the certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as connection:
        shown = connection.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


# ---- who trusts whom -----------------------------------------------------------------------------------------
def test_a_client_trusts_the_authority_it_names(tmp_path: Path, trusted: dict[str, Any], pair: Pair) -> None:
    stranger = Authority(tmp_path, "stranger")
    with _serving(tmp_path, pair) as server:
        with Client(_target(server), **trusted) as client:
            assert client.list_collections() == []
        for ca in (stranger.ca, ""):
            with (
                Client(_target(server), **{**trusted, "ca": ca}) as client,
                pytest.raises(Unavailable, match="TLS handshake failed"),
            ):
                client.list_collections()
        with Client(_target(server), insecure=True) as client, pytest.raises(Unavailable, match="no answer from"):
            client.list_collections()


def test_a_server_asks_for_certificates_of_its_authority(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    known, unknown = authority.issue("client"), Authority(tmp_path, "stranger").issue("other")
    with _serving(tmp_path, pair) as server:
        target = _target(server)
        with Client(target, ca=authority.ca, cert=known.cert, key=known.key) as client:
            assert client.list_collections() == []
        with Client(target, ca=authority.ca) as client, pytest.raises(Unavailable):
            client.list_collections()
        with (
            Client(target, ca=authority.ca, cert=unknown.cert, key=unknown.key) as client,
            pytest.raises(Unavailable),
        ):
            client.list_collections()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"insecure": True, "ca": "x"}, "insecure: got it with ca"),
        ({"cert": "x"}, "cert, key: got one of the two"),
        ({"key": "x"}, "cert, key: got one of the two"),
        ({"ca": "/nowhere"}, "ca: /nowhere cannot be read: No such file"),
    ],
)
def test_what_a_client_may_be_given(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        Client("127.0.0.1:1", **arguments)
    with pytest.raises(InvalidInput):
        Client(":memory:", ca="x")


# ---- what a server may be given ------------------------------------------------------------------------------
def _certificates(pair: Pair, **settings: Any) -> Certificates:
    paths = {"tls_cert": str(pair.cert), "tls_key": str(pair.key), "tls_client_ca": str(pair.cert)}
    return Certificates(ServerConfig(data=Path("data"), **{**paths, **settings}))


def test_files_that_cannot_be_served(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    other, expired = authority.issue("other"), authority.issue("expired", ends=-timedelta(days=1))
    cases: list[tuple[Pair, dict[str, Any], str]] = [
        (pair, {"tls_cert": str(tmp_path / "none")}, r"tls_cert: /.*/none cannot be read: No such file"),
        (pair, {"tls_cert": str(pair.key)}, "tls_cert: got something else than certificates"),
        (pair, {"tls_key": str(pair.cert)}, "tls_key: got something else than an unencrypted private key"),
        (pair, {"tls_key": str(other.key)}, "tls_key: got the key of another certificate"),
        (pair, {"tls_client_ca": str(pair.key)}, "tls_client_ca: got something else than certificates"),
        (expired, {}, "tls_cert: got one that expired on"),
    ]
    for files, settings, reason in cases:
        with pytest.raises(InvalidInput, match=reason):
            _certificates(files, **settings)
    key = load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(InvalidInput, match="got something else than an unencrypted"):
        _certificates(pair)


# ---- reloading -----------------------------------------------------------------------------------------------
def test_new_connections_get_the_new_certificate(
    tmp_path: Path, authority: Authority, pair: Pair, trusted: dict[str, Any]
) -> None:
    with _serving(tmp_path, pair) as server, Client(_target(server), **trusted) as client:
        assert server.certificates is not None
        assert client.list_collections() == []
        assert _serial(server.port) == pair.serial
        new = authority.issue("server")
        assert _serial(server.port) == pair.serial, "not before a reload"
        server.certificates.reload()
        assert [_serial(server.port) for _ in range(2)] == [new.serial] * 2
        assert client.list_collections() == [], "the old connection goes on"
        new.cert.write_text("half of a cert")
        with pytest.raises(InvalidInput):
            server.certificates.reload()
        assert _serial(server.port) == new.serial


# ---- a real process ------------------------------------------------------------------------------------------
@pytest.fixture
def served(tmp_path: Path, authority: Authority, pair: Pair) -> Iterator[Served]:
    served = Served(
        *("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--threads", "1", "--log-level", "info"),
        *("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-client-ca", str(authority.ca)),
    )
    yield served
    served.process.kill()
    served.process.communicate()


def _line_with(served: Served, text: str) -> str:
    assert served.process.stderr is not None
    return next(line for line in served.process.stderr if text in line)


def test_hangup_reloads_and_keeps_what_does_not_load(
    served: Served, authority: Authority, trusted: dict[str, Any]
) -> None:
    address = served.line().split()[-1]
    port = int(address.rpartition(":")[2])
    with Client(address, **trusted) as client:
        assert client.list_collections() == []
    new = authority.issue("server")
    served.process.send_signal(signal.SIGHUP)
    assert "INFO" in _line_with(served, "certificates: reloaded")
    assert _serial(port) == new.serial
    new.key.write_bytes(b"")
    served.process.send_signal(signal.SIGHUP)
    line = _line_with(served, "certificates: not reloaded, the old ones stay: tls_key: got something else")
    assert "ERROR" in line
    assert str(new.key) not in line
    assert _serial(port) == new.serial
    assert served.end(signal.SIGTERM)[0] == 0


def test_only_tls_1_3_is_spoken(served: Served) -> None:
    address = served.line().split()[-1].rpartition(":")
    spoken = []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        with (
            contextlib.suppress(ssl.SSLError, ConnectionError),
            socket.create_connection((address[0], int(address[2]))) as plain,
            context.wrap_socket(plain) as connection,
        ):
            spoken.append(connection.version())
    assert spoken == ["TLSv1.3"]
    assert served.end(signal.SIGTERM)[0] == 0


def test_hangup_without_certificates_changes_nothing(tmp_path: Path) -> None:
    served = Served("--data", str(tmp_path), "--listen", "127.0.0.1:0", "--insecure", "--log-level", "info")
    address = served.line().split()[-1]
    served.process.send_signal(signal.SIGHUP)
    assert _line_with(served, "nothing to reload")
    with Client(address, insecure=True) as client:
        assert client.list_collections() == []
    assert served.end(signal.SIGTERM)[0] == 0

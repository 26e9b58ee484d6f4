"""`hesearch certs dev`, and the TLS that its certificates give: 1.3 and nothing older."""

from __future__ import annotations

import json
import signal
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from he_client import Client, transport
from he_client.cli import main
from he_engine.errors import AlreadyExists, InvalidInput, PermissionDenied
from he_server.access import dev_certificates
from he_server.access.authentication import Authentication
from he_server.access.dev_certificates import DAYS, make
from he_server.access.principals import Principal, from_certificate
from tests.identity_fixture import answering, shown, who
from tests.test_server_cli import Served

ALICE = Principal("alice", "acme", frozenset({"searchers", "auditors"}), "certificate")
BOB = Principal("b@ob.key", "other-1", frozenset(), "certificate")


def _everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


# ---- the files -----------------------------------------------------------------------------------------------
def test_what_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "certs"
    made = make(folder, [ALICE, BOB])
    assert {path.relative_to(folder) for path in made.files} == {Path(name) for name in _everything(folder)}
    assert len(made.files) == 8
    assert {path.stat().st_mode & 0o777 for path in made.files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_dir()} == {0o700}
    keys = {path: path.with_suffix(".key").read_bytes() for path in made.files if path.suffix == ".pem"}
    assert len(set(keys.values())) == 4
    ca = _certificate(folder / "ca.pem")
    for path, key in keys.items():
        certificate = _certificate(path)
        certificate.verify_directly_issued_by(ca)
        assert load_pem_private_key(key, None).public_key() == certificate.public_key()
        length = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert length <= timedelta(days=DAYS, minutes=6) <= timedelta(days=91)
        assert certificate.not_valid_after_utc == made.ends
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is (certificate == ca)
    for principal in (ALICE, BOB):
        path = folder / "clients" / principal.tenant / f"{principal.name}.pem"
        assert from_certificate(shown(path.read_bytes())) == principal


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make(tmp_path, [ALICE])
    before = _everything(tmp_path)
    for clients in ([], [ALICE], [BOB, ALICE]):
        with pytest.raises(AlreadyExists, match="it is there already"):
            make(tmp_path, clients)
        assert _everything(tmp_path) == before
    for name in ("ca.key", "server.pem", "clients/acme/alice.key"):
        other = tmp_path / "other" / name.replace("/", "-")
        (other / name).parent.mkdir(parents=True)
        (other / name).symlink_to("nowhere")
        with pytest.raises(AlreadyExists, match="it is there already"):
            make(other, [ALICE])
        assert _everything(other) == {}


def test_the_same_authority_signs_more(tmp_path: Path) -> None:
    first = make(tmp_path, [ALICE])
    before = _everything(tmp_path)
    more = make(tmp_path, [BOB])
    assert len(more.files) == 2
    assert more.ends == first.ends
    assert _everything(tmp_path).items() > before.items()
    _certificate(more.files[0]).verify_directly_issued_by(_certificate(tmp_path / "ca.pem"))


def test_what_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="got a principal twice"):
        make(tmp_path, [ALICE, Principal("alice", "acme", frozenset(), "certificate")])
    assert _everything(tmp_path) == {}
    make(tmp_path / "one", [])
    make(tmp_path / "two", [])
    (tmp_path / "one" / "ca.key").write_bytes((tmp_path / "two" / "ca.key").read_bytes())
    with pytest.raises(InvalidInput, match="the key of another certificate"):
        make(tmp_path / "one", [BOB])
    (tmp_path / "one" / "ca.key").write_bytes(b"")
    with pytest.raises(InvalidInput, match="cannot be read"):
        make(tmp_path / "one", [BOB])
    monkeypatch.setattr(dev_certificates, "DAYS", 0)
    make(tmp_path / "old", [])
    with pytest.raises(InvalidInput, match="it has expired"):
        make(tmp_path / "old", [BOB])
    assert not (tmp_path / "old" / "clients").exists()


# ---- the command ---------------------------------------------------------------------------------------------
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    assert main(["certs", "dev", str(folder), "--client", "acme/alice:searchers,auditors"]) == 0
    out = capsys.readouterr().out
    assert f"wrote {folder / 'clients' / 'acme' / 'alice.key'}\n" in out
    assert "For development only" in out
    assert "PRIVATE" not in out
    assert from_certificate(shown((folder / "clients/acme/alice.pem").read_bytes())) == ALICE
    assert main(["certs", "dev", str(folder), "--client", f"{BOB}", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == [str(folder / f"clients/other-1/b@ob.key{end}") for end in (".pem", ".key")]
    assert datetime.fromisoformat(said["ends"]) > datetime.now(UTC)
    assert main(["certs", "dev", str(folder), "--client", f"{BOB}"]) == 4
    assert "it is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "client",
    ["alice", "acme/alice/x", "acme/../x", "/alice", "acme/", "acme/alice:", "acme/alice:a,a", "acme/alice:a,"],
)
def test_clients_that_the_command_refuses(client: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certs", "dev", str(tmp_path / "certs"), "--client", client]) == 2
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "certs").exists()


# ---- connections ---------------------------------------------------------------------------------------------
@pytest.fixture
def certs(tmp_path: Path) -> Path:
    make(tmp_path / "certs", [ALICE])
    return tmp_path / "certs"


@pytest.fixture
def served(tmp_path: Path, certs: Path) -> Iterator[Served]:
    files = {name: str(certs / file) for name, file in (("cert", "server.pem"), ("key", "server.key"))}
    served = Served(
        *("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--threads", "1"),
        *("--tls-cert", files["cert"], "--tls-key", files["key"], "--tls-client-ca", str(certs / "ca.pem")),
    )
    yield served
    served.process.kill()
    served.process.communicate()


def _spoken(address: str, certs: Path, version: ssl.TLSVersion, host: str = "localhost") -> Any:
    """The version and cipher of a handshake with this version only and a client's certificate; both sides verify.
    Raises ssl.SSLError or ConnectionError where there is none."""
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(certs / "clients/acme/alice.pem", certs / "clients/acme/alice.key")
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    name, _, port = address.rpartition(":")
    with (
        socket.create_connection((name, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        connection.settimeout(20)
        connection.recv(1)  # under 1.3 the server has looked at the certificate only when it says something
        return connection.version()


def test_serve_speaks_tls_1_3_alone(served: Served, certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With whatever ciphers the client offers. gRPC ends a handshake that it refuses without saying why."""
    monkeypatch.setattr(transport, "FIRST_ATTEMPTS", 2)
    address = served.line().split()[-1]
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _spoken(address, certs, ssl.TLSVersion.TLSv1_2)
    for host in ("localhost", "127.0.0.1", "::1"):
        assert _spoken(address, certs, ssl.TLSVersion.TLSv1_3, host) == "TLSv1.3"
    cert = certs / "clients" / "acme" / "alice.pem"
    with (
        Client(address, ca=str(certs / "ca.pem"), cert=str(cert), key=str(cert.with_suffix(".key"))) as client,
        pytest.raises(PermissionDenied, match="no policy lets acme/alice do this"),  # she has no ready role
    ):
        client.list_collections()
    assert served.end(signal.SIGTERM)[0] == 0


def test_the_handshake_of_1_2_succeeds_where_it_is_spoken(certs: Path) -> None:
    """gRPC as it comes: so the refusal above is not the test's own doing, nor that of the certificates."""
    pair = (certs / "server.key").read_bytes(), (certs / "server.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([pair], (certs / "ca.pem").read_bytes(), True)
    with answering(Authentication(), credentials) as address:
        assert _spoken(address, certs, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        cert = certs / "clients" / "acme" / "alice.pem"
        assert who(address, certs / "ca.pem", cert) == "acme/alice auditors,searchers certificate"


def test_the_authority_signs_for_no_other_host(certs: Path) -> None:
    """Whoever trusts it, and loses ca.key, is not deceived about the rest of the world."""
    authority = dev_certificates._Authority.load(certs)
    names = (x509.DNSName("bank.example"),)
    dev_certificates._issue(authority, certs / "bank", names, ExtendedKeyUsageOID.SERVER_AUTH)
    pair = (certs / "bank.key").read_bytes(), (certs / "bank.pem").read_bytes()
    with answering(Authentication(), grpc.ssl_server_credentials([pair])) as address:
        context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
        host, _, port = address.rpartition(":")
        with (
            pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"),
            socket.create_connection((host, int(port))) as plain,
            context.wrap_socket(plain, server_hostname="bank.example"),
        ):
            pass

"""Certificates for development: an authority, a server on this machine, and clients that name principals.

Not for anything that others reach: the authority's key lies unencrypted beside the certificates. Of all host names it
can sign for `localhost` alone (name constraints), so who trusts it is not deceived about others. It all ends after 90
days.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from he_engine.errors import AlreadyExists, InvalidInput
from he_server.access.principals import Principal, certificate_uri

DAYS = 90
_CLOCKS_DIFFER = timedelta(minutes=5)
_LABEL = "hesearch development"
_SERVER_NAMES = (
    x509.DNSName("localhost"),
    x509.IPAddress(ip_address("127.0.0.1")),
    x509.IPAddress(ip_address("::1")),
)
#: Addresses are not constrained: gRPC's TLS library refuses authorities with constraints on those.
_PERMITTED = (x509.DNSName("localhost"),)


@dataclass(frozen=True, slots=True)
class Made:
    files: tuple[Path, ...]
    ends: datetime  #: when the authority's certificate ends, and those that it signed now


def make(folder: Path, clients: Sequence[Principal]) -> Made:
    """ca.pem, ca.key, server.pem and server.key in `folder`, and clients/TENANT/NAME.pem and .key for each client.

    In a folder that has an authority, it signs further clients. Raises AlreadyExists, with nothing written, where a
    file is there already; InvalidInput for a principal named twice, or an authority that is incomplete or has expired.
    """
    if len({str(client) for client in clients}) != len(clients):
        raise InvalidInput("client: got a principal twice, expected each once")
    old = (folder / "ca.pem").exists()
    pairs = [_client_stem(folder, client) for client in clients]
    stems = pairs if old else [folder / "ca", folder / "server", *pairs]
    if not stems:
        raise AlreadyExists(f"{folder / 'ca.pem'}: it is there already; name a new client, or another folder")
    for file in (file for stem in stems for file in _files(stem) if os.path.lexists(file)):
        raise AlreadyExists(f"{file}: it is there already, and nothing is overwritten; nothing was made")
    authority = _Authority.load(folder) if old else _Authority.new()
    if not old:
        authority.save(folder)
        _issue(authority, folder / "server", _SERVER_NAMES, ExtendedKeyUsageOID.SERVER_AUTH)
    for client, stem in zip(clients, pairs, strict=True):
        names = (x509.UniformResourceIdentifier(certificate_uri(client)),)
        _issue(authority, stem, names, ExtendedKeyUsageOID.CLIENT_AUTH)
    return Made(tuple(file for stem in stems for file in _files(stem)), authority.certificate.not_valid_after_utc)


def _client_stem(folder: Path, client: Principal) -> Path:
    return folder / "clients" / client.tenant / client.name


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + ".pem"), stem.with_name(stem.name + ".key")


@dataclass(frozen=True, slots=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def new(cls) -> _Authority:
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{_LABEL} authority")])
        builder = _builder(name, name, key.public_key(), key.public_key(), now + timedelta(days=DAYS))
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.NameConstraints(_PERMITTED, None), critical=True)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, folder: Path) -> _Authority:
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError, TypeError):
            raise InvalidInput("ca.pem, ca.key: they cannot be read; make everything anew in another folder") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise InvalidInput("ca.key: got the key of another certificate than ca.pem")
        if certificate.not_valid_after_utc <= datetime.now(UTC):
            raise InvalidInput("ca.pem: it has expired; make everything anew in another folder")
        return cls(key, certificate)

    def save(self, folder: Path) -> None:
        _write(folder / "ca", self.certificate, self.key)


def _issue(
    authority: _Authority, stem: Path, names: Sequence[x509.GeneralName], purpose: x509.ObjectIdentifier
) -> None:
    key, issuer = ec.generate_private_key(ec.SECP256R1()), authority.certificate
    kind = "server" if purpose == ExtendedKeyUsageOID.SERVER_AUTH else "client"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{_LABEL} {kind}")])
    builder = _builder(
        subject, issuer.subject, key.public_key(), authority.key.public_key(), issuer.not_valid_after_utc
    )
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    _write(stem, builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuers_public: ec.EllipticCurvePublicKey,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _CLOCKS_DIFFER)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = certificate.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _make_folder(stem.parent)
    for file, data in zip(_files(stem), pem, strict=True):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise AlreadyExists(f"{file}: it is there already, and nothing is overwritten") from None
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)


def _make_folder(folder: Path) -> None:
    """With all that it lies in, for this user alone."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(0o700)

"""The server's certificate: read, checked, offered to gRPC, and replaced while the server runs.

gRPC speaks TLS 1.2 and 1.3, and from Python only the environment says which: with no cipher of 1.2 that could be
used, 1.3 alone is left. gRPC reads the environment when it is imported, so `require_tls_1_3` starts the process anew.
"""

from __future__ import annotations

import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from he_engine.errors import InvalidInput
from he_server.config import ServerConfig

_CIPHERS = "GRPC_SSL_CIPHER_SUITES"
_NO_CIPHER_OF_1_2 = "ECDHE-PSK-AES128-CBC-SHA"  #: BoringSSL knows it; it needs a shared key, and there is none


def require_tls_1_3() -> None:
    """Replaces this process by the same command with the environment that refuses TLS 1.2; the pid stays. In it
    gRPC also no longer writes a line to stderr for every handshake that fails.

    Returns where that has been done, or where the operator has chosen ciphers.
    """
    if _CIPHERS not in os.environ:
        os.execve(sys.executable, sys.orig_argv, {"GRPC_VERBOSITY": "ERROR", **os.environ, _CIPHERS: _NO_CIPHER_OF_1_2})


class Certificates:
    """Of one server. Thread-safe. Raises InvalidInput if the files hold nothing that can be served."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._first = _read(config)
        self._new: grpc.ServerCertificateConfiguration | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For a port. Connections made after a `reload` get what it read."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._fetch,  # type: ignore[arg-type]  # the stubs do not know that None means "as before"
            require_client_authentication=bool(self._config.tls_client_ca),
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks before each handshake; None: as before."""
        with self._lock:
            new, self._new = self._new, None
        return new

    def reload(self) -> None:
        """Takes what the files hold now. Raises InvalidInput, and keeps what it has, if that cannot be served."""
        new = _read(self._config)
        with self._lock:
            self._new = new


def _read(config: ServerConfig) -> grpc.ServerCertificateConfiguration:
    chain, key = _bytes("tls_cert", config.tls_cert), _bytes("tls_key", config.tls_key)
    certificate = _certificates("tls_cert", chain)[0]
    try:
        private = load_pem_private_key(key, password=None)
    except (TypeError, ValueError):
        raise InvalidInput("tls_key: got something else than an unencrypted private key in PEM") from None
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*spki) != certificate.public_key().public_bytes(*spki):
        raise InvalidInput("tls_key: got the key of another certificate than the first one of tls_cert")
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise InvalidInput(f"tls_cert: got one that expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    roots = _bytes("tls_client_ca", config.tls_client_ca) if config.tls_client_ca else None
    if roots is not None:
        _certificates("tls_client_ca", roots)
    return grpc.ssl_server_certificate_configuration([(key, chain)], roots)


def _bytes(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{field}: {path} cannot be read: {error.strerror}") from None


def _certificates(field: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise InvalidInput(f"{field}: got something else than certificates in PEM") from None

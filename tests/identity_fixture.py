"""Real certificates, tokens and connections for the tests of who calls."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from jwt.algorithms import get_default_algorithms

from he_engine.errors import HesearchError
from he_proto.status import status_of
from he_server.access.authentication import Authentication

CERTIFICATE_KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER, AUDIENCE = "https://issuer.example", "hesearch"
_OIDS = {
    "CN": NameOID.COMMON_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
}


# ---- certificates --------------------------------------------------------------------------------------------
def pem(subject: str = "", *uris: str, dns: str = "", ends: timedelta = timedelta(days=1)) -> bytes:
    """subject: "CN=alice,O=acme,OU=one,OU=two". Signed by itself; nothing here depends on who signed."""
    attributes = [part.partition("=") for part in subject.split(",") if part]
    name = x509.Name([x509.NameAttribute(_OIDS[key], value) for key, _, value in attributes])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(CERTIFICATE_KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + ends)
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(dns)] if dns else []
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(CERTIFICATE_KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


def shown(certificate: bytes) -> dict[str, list[bytes]]:
    """What gRPC says of a connection whose client has shown this certificate."""
    return {"transport_security_type": [b"ssl"], "x509_pem_cert": [certificate]}


# ---- tokens --------------------------------------------------------------------------------------------------
def jwk(key: Any, algorithm: str, kid: Any = "one", **members: Any) -> dict[str, Any]:
    """The public key, as an issuer publishes it."""
    entry = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
    return {**entry, "use": "sig", **({"kid": kid} if kid else {}), **members}


def key_set(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": entries}).encode()


def claims(**changed: Any) -> dict[str, Any]:
    """Good ones, with changes; None takes a claim out."""
    now = int(time.time())
    good = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "tenant": "acme", "groups": ["searchers"],
        "exp": now + 600, "nbf": now - 5,
    }  # fmt: skip
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def signed(key: Any, algorithm: str, kid: str | None = "one", headers: Any = None, **changed: Any) -> str:
    header = {**({"kid": kid} if kid else {}), **(headers or {})}
    return jwt.encode(claims(**changed), key, algorithm, headers=header)


def encoded(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ---- connections ---------------------------------------------------------------------------------------------
class _WhoAmI(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """One method, which answers every call with whom it takes the caller for."""

    def __init__(self, authentication: Authentication) -> None:
        self._authentication = authentication

    def service(self, details: Any) -> Any:
        del details
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        del request
        try:
            principal = self._authentication.principal(context)
        except HesearchError as error:
            context.abort(status_of(error).code, str(error))
        return f"{principal} {','.join(sorted(principal.groups))} {principal.via}".encode()


@contextlib.contextmanager
def answering(authentication: Authentication, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """The address of a server that says who called."""
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((_WhoAmI(authentication),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def who(address: str, ca: Path | None = None, cert: Path | None = None, *headers: str) -> str:
    """What the server answers. headers: values of `authorization`. Raises grpc.RpcError."""
    if ca is None:
        channel = grpc.insecure_channel(address)
    else:
        files = (cert.with_suffix(".key").read_bytes(), cert.read_bytes()) if cert else (None, None)
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes(), *files))
    with channel:
        call = channel.unary_unary("/test/WhoAmI", None, None)
        answer: bytes = call(b"", metadata=tuple(("authorization", value) for value in headers), timeout=20)
    return answer.decode()


def refused(address: str, *arguments: Any) -> tuple[grpc.StatusCode, str]:
    """How the server refuses the call."""
    try:
        answer = who(address, *arguments)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"the call was answered: {answer}")

"""Who calls: a principal, and how a client's certificate names one.

A certificate says it in one of two ways, and the first that is there counts:

1. one URI among its alternative names: `hesearch://TENANT/NAME?group=G1&group=G2` (the groups may be missing);
2. its subject: one CN is the name, one O the tenant, each OU a group.

Anything that could be read in two ways is refused: two such URIs, two CNs or Os, a group twice, escapes, other
characters than those of names. So no two principals have one certificate, and none is read differently elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from he_engine.errors import InvalidInput, Unauthenticated

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OS_NAME = re.compile(rf"os:{_NAME.pattern}")  #: which no certificate or token can have
_VIA = ("certificate", "token", "loopback", "os")
_SCHEME = "hesearch:"
_GROUP = r"group=[^/?#&=]+"
_URI = re.compile(rf"hesearch://([^/?#]+)/([^/?#]+)(?:\?({_GROUP}(?:&{_GROUP})*))?")

AuthContext = Mapping[str, Iterable[bytes]]  #: as grpc.ServicerContext.auth_context() gives it


@dataclass(frozen=True, slots=True)
class Principal:
    """One caller. Two with the same tenant and name are the same, whatever they showed to prove it.

    Raises InvalidInput, which quotes nothing, for characters or lengths that names may not have.
    """

    name: str  #: [A-Za-z0-9][A-Za-z0-9._@-]{0,127}; of a user of the operating system: os: and such a name
    tenant: str  #: [A-Za-z0-9][A-Za-z0-9_-]{0,63}
    groups: frozenset[str]  #: each like a name
    via: str  #: "certificate", "token", "loopback" or, of a command on the server's machine, "os"

    def __post_init__(self) -> None:
        names = _OS_NAME if self.via == "os" else _NAME
        if not names.fullmatch(self.name):
            raise InvalidInput(f"name: expected {names.pattern}, got something else")
        if not _TENANT.fullmatch(self.tenant):
            raise InvalidInput(f"tenant: expected {_TENANT.pattern}, got something else")
        if not all(_NAME.fullmatch(group) for group in self.groups):
            raise InvalidInput(f"group: expected {_NAME.pattern}, got something else")
        if self.via not in _VIA:
            raise InvalidInput(f"via: expected one of {', '.join(_VIA)}, got something else")

    def __str__(self) -> str:
        """TENANT/NAME, which no other principal has: tenants contain no slash."""
        return f"{self.tenant}/{self.name}"


caller: ContextVar[Principal] = ContextVar("caller")  #: of the call that runs in this context

#: Everybody who calls without TLS, which only processes of this machine can.
LOOPBACK = Principal("loopback", "local", frozenset(), "loopback")


def over_tls(auth_context: AuthContext) -> bool:
    return list(auth_context.get("transport_security_type", ())) == [b"ssl"]


def certificate_uri(principal: Principal) -> str:
    """The alternative name that makes a certificate this principal's."""
    groups = "&".join(f"group={group}" for group in sorted(principal.groups))
    return f"hesearch://{principal.tenant}/{principal.name}" + (f"?{groups}" if groups else "")


def from_certificate(auth_context: AuthContext) -> Principal | None:
    """Whom the client's certificate names, which gRPC has verified in the handshake; None where it showed none.

    Read from `x509_pem_cert` alone: gRPC's list of alternative names does not say which are URIs. Raises
    Unauthenticated: it names nobody, or two, or is no longer valid (a connection may outlive its certificate).
    """
    pems = list(auth_context.get("x509_pem_cert", ()))
    if not pems:
        return None
    if len(pems) > 1:
        raise Unauthenticated(f"certificate: got {len(pems)} of one connection, expected one")
    principal, begins, ends = _read(pems[0])
    if not begins <= datetime.now(UTC) <= ends:
        raise Unauthenticated("certificate: its time of validity is over, or has not begun; connect with another one")
    return principal


@lru_cache(maxsize=1024)
def _read(pem: bytes) -> tuple[Principal, datetime, datetime]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        name, tenant, groups = _from_uri(certificate) or _from_subject(certificate)
        if len(set(groups)) != len(groups):
            raise InvalidInput("group: got one twice")
        principal = Principal(name, tenant, frozenset(groups), "certificate")
    except InvalidInput as error:
        raise Unauthenticated(f"certificate: {error}") from None
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise Unauthenticated("certificate: it cannot be read") from None
    return principal, certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _from_uri(certificate: x509.Certificate) -> tuple[str, str, list[str]] | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    ours = [uri for uri in uris if uri.lower().startswith(_SCHEME)]
    if not ours:
        return None
    if len(ours) > 1:
        raise InvalidInput(f"alternative names: got {len(ours)} hesearch URIs, expected one")
    match = _URI.fullmatch(ours[0])
    if match is None:
        raise InvalidInput("alternative name: expected hesearch://TENANT/NAME?group=GROUP&group=…, got something else")
    groups = match[3].split("&") if match[3] else []
    return match[2], match[1], [group.removeprefix("group=") for group in groups]


def _from_subject(certificate: x509.Certificate) -> tuple[str, str, list[str]]:
    def values(oid: x509.ObjectIdentifier) -> list[str]:
        return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(oid)]

    names, tenants = values(NameOID.COMMON_NAME), values(NameOID.ORGANIZATION_NAME)
    if len(names) != 1 or len(tenants) != 1:
        raise InvalidInput(
            f"subject: got {len(names)} CN and {len(tenants)} O, expected one of each, or a hesearch URI among the "
            "alternative names"
        )
    return names[0], tenants[0], values(NameOID.ORGANIZATIONAL_UNIT_NAME)

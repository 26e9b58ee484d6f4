"""Who makes a call: what its token says, if it has one; else its certificate; else, without TLS, this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc

from he_engine.errors import MissingExtra, Unauthenticated
from he_server.access.principals import LOOPBACK, AuthContext, Principal, from_certificate, over_tls

if TYPE_CHECKING:
    from he_server.access.tokens import Tokens


def open_tokens(*, jwks: str = "", issuer: str, ca: str = "", **settings: Any) -> Tokens:
    """The tokens of an issuer, with its keys from the file `jwks`, or if that is empty as its OpenID configuration says
    (`ca`: as in Issuer). settings: as in Tokens. Raises InvalidInput, MissingExtra."""
    try:
        from he_server.access.issuer import Issuer
        from he_server.access.jwks import KeyFile
        from he_server.access.tokens import Tokens
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install '.[server]'") from error
    return Tokens(KeyFile(jwks) if jwks else Issuer(issuer, ca), issuer=issuer, **settings)


class Authentication:
    """Of one server; `tokens` is None where it takes none. Thread-safe."""

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._tokens = tokens

    def principal(self, context: grpc.ServicerContext) -> Principal:
        """Of a call. Raises as `of`."""
        auth_context: AuthContext = context.auth_context()  # type: ignore[assignment]  # the stubs forget the lists
        return self.of(
            auth_context, [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        )

    def of(self, auth_context: AuthContext, authorizations: Sequence[str | bytes]) -> Principal:
        """Of a connection as gRPC describes it, and the values of `authorization` that were sent. Raises
        Unauthenticated, and Unavailable where a token's issuer cannot be reached.

        A token that is sent must be right, whatever the certificate says: whoever sends one means to be its bearer.
        """
        tls = over_tls(auth_context)
        token = _bearer(authorizations)
        if token is not None:
            if not tls:
                raise Unauthenticated("token: got it without TLS, where others may read it; revoke it, and use TLS")
            if self._tokens is None:
                raise Unauthenticated("token: this server takes none; call with a certificate")
            return self._tokens.principal(token)
        if not tls:
            return LOOPBACK
        principal = from_certificate(auth_context)
        if principal is None:
            raise Unauthenticated("got neither a client certificate nor a token, expected one of them")
        return principal


def _bearer(values: Sequence[str | bytes]) -> str | None:
    """The token of `authorization: Bearer TOKEN`; None without such an entry."""
    if not values:
        return None
    value = values[0]
    if len(values) > 1 or not isinstance(value, str):
        raise Unauthenticated("authorization: got several entries, or bytes; expected one text")
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("authorization: expected Bearer TOKEN, got something else")
    return token

"""Bearer tokens: JSON Web Tokens (RFC 7519) of one issuer, signed with a key that it has published.

The order of RFC 8725: first the algorithm is one of a fixed list (all asymmetric) and one that the key is for, then the
signature is right, then who made it, for whom, and when. Nothing in a token says where a key is to be found.
"""

from __future__ import annotations

from typing import Any

import jwt

from he_engine.errors import InvalidInput, Unauthenticated
from he_server.access.jwks import ALGORITHMS, Keys
from he_server.access.principals import Principal

MAX_TOKEN_BYTES = 8192
LEEWAY_S = 30  #: by which clocks may differ
_TYPES = (None, "JWT", "AT+JWT", "APPLICATION/AT+JWT")
_REASONS: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "it has expired; get a new one"),
    (jwt.ImmatureSignatureError, "it is not valid yet"),
    (jwt.InvalidAudienceError, "it is for another audience than this server's"),
    (jwt.InvalidIssuerError, "it is another issuer's"),
    (jwt.InvalidAlgorithmError, "its algorithm is not that of its key"),
    (jwt.InvalidSignatureError, "its signature is wrong"),
)


class Tokens:
    """Tells whose a token is. Thread-safe.

    keys: a KeyFile or an Issuer; issuer, audience: what `iss` must be and `aud` contain; the claims that hold the
    tenant (a text) and the groups (texts; no claim: none). Raises InvalidInput if issuer, audience or a claim is empty.
    """

    def __init__(
        self, keys: Keys, *, issuer: str, audience: str, tenant_claim: str = "tenant", groups_claim: str = "groups"
    ) -> None:
        if not (issuer and audience and tenant_claim and groups_claim):
            raise InvalidInput("tokens: got no issuer, audience, or name of a claim, expected all of them")
        self._keys, self._issuer, self._audience = keys, issuer, audience
        self._tenant_claim, self._groups_claim = tenant_claim, groups_claim

    def reload(self) -> None:
        """Takes the keys that are there now. Raises InvalidInput or Unavailable, and keeps what it has."""
        self._keys.reload()

    def principal(self, token: str) -> Principal:
        """Whose the token is: `sub` is the name. Raises Unauthenticated with a reason that quotes nothing of it, and
        Unavailable where the issuer's keys cannot be read."""
        try:
            return self._named(self._claims(token))
        except jwt.MissingRequiredClaimError as error:
            reason = f"it has no claim {error.claim}"  # one of ours
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            if isinstance(error, InvalidInput):
                reason = str(error)
            else:
                reason = next((text for kind, text in _REASONS if isinstance(error, kind)), "it is malformed")
        raise Unauthenticated(f"token: {reason}")

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidInput(f"got {len(token)} bytes, expected at most {MAX_TOKEN_BYTES}")
        header = jwt.get_unverified_header(token)
        kind = header.get("typ")
        if (kind.upper() if isinstance(kind, str) else kind) not in _TYPES:
            raise InvalidInput("its typ is another one than JWT or at+jwt")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:  # before the issuer is troubled
            raise InvalidInput(f"its algorithm is none of {', '.join(sorted(ALGORITHMS))}")
        key = self._keys.find(header.get("kid"))
        if key is None:
            raise InvalidInput("its issuer has no key of its kid")
        claims = jwt.decode(
            token,
            key.public,
            algorithms=key.algorithms,
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        if claims.get("nbf") is None and claims.get("iat") is None:  # many issuers write the second alone
            raise InvalidInput("it has no claim nbf, nor iat in its place")
        if "cnf" in claims:  # taken as a bearer token, it would lose what binds it
            raise InvalidInput("it is bound to a key (cnf), expected a bearer token")
        return claims

    def _named(self, claims: dict[str, Any]) -> Principal:
        tenant, groups = claims.get(self._tenant_claim), claims.get(self._groups_claim, [])
        if not isinstance(tenant, str):
            raise InvalidInput(f"its claim {self._tenant_claim} is missing, or no text")
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise InvalidInput(f"its claim {self._groups_claim} is no list of texts")
        return Principal(claims["sub"], tenant, frozenset(groups), "token")

"""A JSON Web Key Set (RFC 7517): the public keys that an issuer signs tokens with, and what each may be used for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jwt

from he_engine.errors import InvalidInput

#: By type of key and curve. All are asymmetric: nobody who can verify can sign.
_ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ALGORITHMS = frozenset(name for names in _ALGORITHMS.values() for name in names)
_MIN_RSA_BITS = 2048
_SECRET = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")  #: members that only a private or a symmetric key has


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, as PyJWT takes it, and the algorithms that a signature of it may have."""

    public: Any
    algorithms: tuple[str, ...]


class Keys(Protocol):
    """Of one issuer. Thread-safe."""

    def find(self, kid: str | None) -> Key | None:
        """The key of that id; of a token without an id, the only key. Raises Unavailable."""

    def reload(self) -> None:
        """Takes what is there now. Raises InvalidInput or Unavailable, and keeps what it has, if it cannot be used."""


class KeySet:
    """What can be used of a key set; keys for encryption and of unknown kinds are passed over.

    Raises InvalidInput: no key set, no key that can be used, two of one id, or one that should be secret.
    """

    def __init__(self, text: bytes) -> None:
        try:
            entries = json.loads(text)["keys"]
            if not all(isinstance(entry, dict) for entry in entries):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InvalidInput("jwks: got something else than a JSON Web Key Set") from None
        if any(member in entry for entry in entries for member in _SECRET):
            raise InvalidInput("jwks: got a private or symmetric key, expected public keys only; replace that key")
        self._keys: dict[str | None, Key] = {}
        for entry in entries:
            key, kid = _key(entry), entry.get("kid")
            if key is None or not isinstance(kid, str | None):
                continue
            if kid in self._keys:
                raise InvalidInput("jwks: got two keys of one kid, or two without, expected a kid for each")
            self._keys[kid] = key
        if not self._keys:
            raise InvalidInput(f"jwks: got no key for signatures of {', '.join(sorted(ALGORITHMS))}")

    def find(self, kid: str | None) -> Key | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if kid is not None else None


def _key(entry: dict[str, Any]) -> Key | None:
    kind, curve, named = entry.get("kty"), entry.get("crv"), entry.get("alg")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    algorithms = _ALGORITHMS.get((kind, curve), ())
    if named is not None:
        algorithms = (named,) if named in algorithms else ()
    if not algorithms:
        return None
    try:
        public = jwt.PyJWK(entry, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if kind == "RSA" and public.key_size < _MIN_RSA_BITS:
        return None
    return Key(public, algorithms)


class KeyFile:
    """The keys in a file, which `reload` reads again. Raises InvalidInput, as KeySet does."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._keys = self._read()

    def _read(self) -> KeySet:
        try:
            return KeySet(Path(self._path).read_bytes())
        except OSError as error:
            raise InvalidInput(f"jwks: the file cannot be read: {error.strerror}") from None

    def find(self, kid: str | None) -> Key | None:
        return self._keys.find(kid)

    def reload(self) -> None:
        self._keys = self._read()

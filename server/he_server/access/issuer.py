"""The keys of an OpenID Connect issuer, read over HTTPS as its `.well-known/openid-configuration` says.

They are kept for an hour, and read again sooner where a token names a key that is not among them, but no more than
once in ten seconds, whatever callers send. While the issuer cannot be reached the old ones serve, for a day at most.
"""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPSConnection
from urllib.parse import SplitResult, urlsplit

from he_engine.errors import HesearchError, InvalidInput, Unavailable
from he_server.access.jwks import Key, KeySet

_log = logging.getLogger(__name__)
REFRESH_S = 3600.0
PAUSE_S = 10.0  #: between two attempts, whether they succeed or not
MAX_AGE_S = 86400.0
_TIMEOUT_S = 5.0  #: of a step of a connection
_MAX_BYTES = 1 << 20  #: of a document


class Issuer:
    """Thread-safe. `url` is the `iss` of its tokens; `ca` a PEM file of the authorities of its certificate, or empty
    for those of the system. `clock` counts seconds. Reads nothing before it is asked for a key. Raises InvalidInput."""

    def __init__(self, url: str, ca: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        parts = _https("issuer", url)
        if parts.query or parts.fragment:
            raise InvalidInput("issuer: got a URL with a query or fragment, expected https://HOST[:PORT][/PATH]")
        try:
            self._tls = ssl.create_default_context(cafile=ca or None)
        except OSError:
            raise InvalidInput("issuer ca: the file cannot be read, or holds no certificates in PEM") from None
        self._url, self._clock = url, clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._read_at = self._tried_at = float("-inf")
        self._current = False  #: whether the last attempt to read them has ended, and well

    def find(self, kid: str | None) -> Key | None:
        """The key of that id. Raises Unavailable where only the issuer could say and it cannot be asked now."""
        with self._lock:
            now = self._clock()
            keys = self._keys if now - self._read_at < MAX_AGE_S else None
            found = keys.find(kid) if keys else None
            due = found is None or now - self._read_at >= REFRESH_S
            due = due and now - self._tried_at >= PAUSE_S
            if due:
                self._tried_at, self._current = now, False
        if due and found:
            threading.Thread(target=self._read, daemon=True).start()  # this call need not wait for it
        elif due:
            self._read()
        if found:
            return found
        with self._lock:
            if self._keys is None or not self._current:
                raise Unavailable("token: the keys of its issuer cannot be read at this moment; try again later")
            return self._keys.find(kid)

    def reload(self) -> None:
        """Reads them now, and forgets those that are gone. Raises InvalidInput or Unavailable and keeps what it has."""
        keys = self._fetched()
        with self._lock:
            self._keys, self._read_at, self._current = keys, self._clock(), True

    def _read(self) -> None:
        try:
            self.reload()
        except HesearchError as error:
            _log.warning("the keys of the token issuer were not read: %s", error)

    def _fetched(self) -> KeySet:
        try:
            said = json.loads(self._get(self._url.rstrip("/") + "/.well-known/openid-configuration"))
            issuer, jwks_uri = said["issuer"], said["jwks_uri"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Unavailable("issuer: its configuration is no JSON object with issuer and jwks_uri") from None
        if issuer != self._url:
            raise Unavailable("issuer: its configuration is another issuer's")
        if not isinstance(jwks_uri, str):
            raise Unavailable("issuer: its jwks_uri is no text")
        return KeySet(self._get(jwks_uri))

    def _get(self, url: str) -> bytes:
        """One document, without following redirects: those could lead out of HTTPS."""
        parts = _https("jwks_uri", url)
        connection = HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=_TIMEOUT_S, context=self._tls)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request("GET", target, headers={"Accept": "application/json"})
            response = connection.getresponse()
            data = response.read(_MAX_BYTES + 1)
        except (OSError, HTTPException, ValueError) as error:
            raise Unavailable(f"issuer: no answer over HTTPS ({type(error).__name__})") from None
        finally:
            connection.close()
        if response.status != 200 or len(data) > _MAX_BYTES:
            raise Unavailable(f"issuer: got status {response.status}, {len(data)} bytes; expected 200, {_MAX_BYTES}")
        return data


def _https(field: str, url: str) -> SplitResult:
    """Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidInput(f"{field}: got something else than a URL") from None
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc:
        raise InvalidInput(f"{field}: expected https://HOST[:PORT][/PATH], got something else")
    return parts

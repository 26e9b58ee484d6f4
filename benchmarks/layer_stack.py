"""Servers and clients of benchmarks.layers: what each layer needs, and how it is switched on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from benchmarks.servers import process, serve_flags
from he_client import Client
from he_server.access.dev_certificates import make
from he_server.access.principals import Principal
from he_server.storage.kek import new_kek_file

CALLER = Principal("ada", "acme", frozenset({"owner"}), "certificate")
ISSUER, AUDIENCE = "https://issuer.example", "hesearch"
_DAY_S = 86_400
#: Each of them is counted, and none refuses: what a query costs that is within its quotas.
QUOTAS = """[principal]
calls_per_s = 1_000_000
queries_per_day = 10_000_000
queries_per_collection = 10_000_000
bytes_per_day = 1_000_000_000_000_000
[tenant]
calls_per_s = 1_000_000
queries_per_day = 10_000_000
bytes_per_day = 1_000_000_000_000_000
"""


@dataclass(frozen=True, slots=True)
class Stack:
    """Certificates, a token, quotas and a key-encryption key in `folder`; a collector of traces."""

    folder: Path
    threads: int  #: of each server
    collector: str  #: its address

    @classmethod
    @contextmanager
    def made(cls, folder: Path, threads: int) -> Iterator[Self]:
        """In a folder that is empty."""
        make(folder / "certs", [CALLER])
        new_kek_file(folder / "kek")
        (folder / "quotas.toml").write_text(QUOTAS)
        key = ec.generate_private_key(ec.SECP256R1())
        public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        (folder / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "one", "use": "sig"}]}))
        now = int(time.time())
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": CALLER.name, "tenant": CALLER.tenant,
            "groups": sorted(CALLER.groups), "nbf": now, "exp": now + _DAY_S,
        }  # fmt: skip
        (folder / "token").write_text(jwt.encode(claims, key, "ES256", headers={"kid": "one"}))
        with process("benchmarks.collector") as (collector, _):
            yield cls(folder, threads, collector)

    def data(self, layers: Set[str]) -> Path:
        """The data folder of the server with these layers."""
        return self.folder / f"data {' '.join(sorted(layers))}"

    def flags(self, layers: Set[str]) -> tuple[str, ...]:
        """Of `hesearch serve`."""
        certs, flags = self.folder / "certs", list(serve_flags(self.data(layers), self.threads))
        if "tls" in layers:
            flags += ["--tls-cert", f"{certs}/server.pem", "--tls-key", f"{certs}/server.key"]
            flags += ["--tls-client-ca", f"{certs}/ca.pem"]
        else:
            flags += ["--insecure"]
        if "token" in layers:
            flags += ["--token-issuer", ISSUER, "--token-audience", AUDIENCE]
            flags += ["--token-jwks", f"{self.folder}/jwks.json"]
        if "audit" not in layers:
            flags += ["--no-audit"]
        if "quotas" in layers:
            flags += ["--quotas", f"{self.folder}/quotas.toml"]
        if "at_rest" in layers:
            flags += ["--kek", f"file:{self.folder}/kek"]
        if "observing" in layers:
            flags += ["--metrics", "127.0.0.1:0", "--log-level", "info", "--log-format", "json"]
            flags += ["--traces", f"http://{self.collector}"]
        return tuple(flags)

    @contextmanager
    def serving(self, layers: Set[str]) -> Iterator[str]:
        """The address of a server with these layers."""
        left_out = []
        if "tls" in layers:
            left_out += [] if layers & {"identity", "token"} else ["identity"]
            left_out += [] if "policies" in layers else ["policies"]
        server = ["benchmarks.layer_server", "--without", *left_out] if left_out else ["he_server"]
        with process(*server, *self.flags(layers), log=self.log(layers)) as (address, _):
            yield address

    def log(self, layers: Set[str]) -> Path:
        """What the server with these layers says on stderr."""
        return self.data(layers).with_suffix(".log")

    def client(self, layers: Set[str], address: str) -> Client:
        """As a server with these layers wants it."""
        if "tls" not in layers:
            return Client(address, insecure=True)
        certs = self.folder / "certs"
        stem = certs / "clients" / CALLER.tenant / CALLER.name
        token = self.folder / "token" if "token" in layers else ""
        return Client(address, ca=certs / "ca.pem", cert=f"{stem}.pem", key=f"{stem}.key", token=token)

"""What to run: a server's configuration and quotas, and commands in a folder that has both."""

from __future__ import annotations

import json
from dataclasses import dataclass

from he_client.layers.answers import Callers, Disk, Engine, Network, Scores, Texts
from he_client.layers.choosing import Advice

PORT = 50051
DIM = 384  #: of commands, where none was given
CONFIG, QUOTAS = "hesearch.toml", "quotas.toml"
_ADA = "certs/clients/acme/ada"


@dataclass(frozen=True, slots=True)
class Commands:
    """Lines for a shell, in order. `operator`: on the server's machine; `user`: where the vectors are."""

    operator: tuple[str, ...]
    user: tuple[str, ...]


def files(advice: Advice) -> dict[str, str]:
    """Names and texts."""
    found = {CONFIG: _config(advice)}
    if "quotas" in advice.reasons:
        found[QUOTAS] = _quotas(advice)
    return found


def _config(advice: Advice) -> str:
    a, on = advice.answers, advice.reasons
    host = "0.0.0.0" if a.network is Network.OPEN else "127.0.0.1"
    settings: list[tuple[str, str | bool, str]] = [
        ("data", "data", "made if it is not there"),
        ("listen", f"{host}:{PORT}", "every address" if a.network is Network.OPEN else "this machine only"),
    ]
    if a.authenticated:
        settings += [
            ("tls_cert", "certs/server.pem", on["tls"]),
            ("tls_key", "certs/server.key", ""),
            (
                "tls_client_ca",
                "certs/ca.pem",
                "authorities that sign clients: who calls is what their certificates say",
            ),
        ]
    else:
        settings += [
            ("insecure", True, "no TLS, and then on loopback only: everybody on this machine may do everything")
        ]
    if a.callers is Callers.SEVERAL:
        settings += [("policies", "policies", on["policies"])]
    if "quotas" in on:
        settings += [("quotas", QUOTAS, on["quotas"])]
    if "at_rest" in on:
        settings += [("kek", "file:kek", f"{on['at_rest']}; better on another disk")]
    lines = [
        f"{name} = {json.dumps(value)}" + (f"   # {comment}" if comment else "") for name, value, comment in settings
    ]
    head = "# Written by `hesearch advise`; `hesearch serve --config` reads it in the folder that its paths start from."
    return "\n".join([head, *lines]) + "\n"


def _quotas(advice: Advice) -> str:
    dim = advice.answers.dim or DIM
    shown = advice.answers.scores is Scores.EVERYBODY
    lines = [
        "# Written by `hesearch advise`: where to begin, for each principal and each tenant (docs/access.md).",
        "[principal]",
        "calls_per_s = 50",
        "queries_per_day = 10_000",
        "bytes_per_day = 50_000_000_000",
        "collections = 20",
    ]
    if shown:
        lines += [
            f"# queries_per_collection = {max(1, dim // 2)}   # for ever: {dim} answers would determine every row, for "
            "callers who may not have them",
        ]
    return "\n".join([*lines, "[tenant]", "queries_per_day = 100_000"]) + "\n"


def commands(advice: Advice) -> Commands:
    return Commands(_operator(advice), _user(advice))


def _operator(advice: Advice) -> tuple[str, ...]:
    a, lines = advice.answers, []
    if a.authenticated:
        grace = " --client acme/grace:searcher" if a.callers is Callers.SEVERAL else ""
        lines += [f"hesearch certs dev ./certs --client acme/ada:owner{grace}"]
    if a.callers is Callers.SEVERAL:
        lines += [
            "hesearch policy new ./policies",
            """printf 'operator = ["local/os:%s"]\\n' "$(id -un)" > policies/groups.toml""",
            "hesearch policy check ./policies",
        ]
    if a.disk is Disk.STOLEN:
        lines += ["hesearch kek new ./kek"]
    lines += [f"hesearch serve --config {CONFIG}"]
    return (*lines, "hesearch audit head ./data > head.json", "hesearch backup ./data ./backup")


def _user(advice: Advice) -> tuple[str, ...]:
    a, on = advice.answers, advice.reasons
    reach = (
        f"--server localhost:{PORT} --ca certs/ca.pem --cert {_ADA}.pem --cert-key {_ADA}.key"
        if a.authenticated
        else f"--server 127.0.0.1:{PORT} --insecure"
    )
    kind = "--engine tenseal" if advice.engine is Engine.TENSEAL else f"--profile {advice.profile.value}"
    lines = []
    if a.texts is Texts.IDENTIFIERS:
        lines += ["hesearch protect text notes.csv safe.csv --column note --names names.txt"]
    lines += ["hesearch keygen notes.key", "hesearch key backup notes.key --shares 5 --needed 3 ./shares"]
    lines += [
        f"hesearch create notes --dim {a.dim or DIM} {kind} --key notes.key {reach}",
        f"hesearch insert notes vectors.npy --ids ids.txt --key notes.key {reach}",
        f"hesearch search notes query.npy -k 10 --key notes.key {reach}",
        f"hesearch export notes notes.archive {reach}",
    ]
    if "privacy" in on:
        lines += ["hesearch dp budget people.budget --epsilon 3 --delta 1e-6"]
        lines += ["hesearch dp release vectors.npy noisy.npy --epsilon 1 --delta 1e-7 --budget people.budget"]
    return tuple(lines)

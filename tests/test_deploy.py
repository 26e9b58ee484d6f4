"""What is deployed: the health command, and files that name only what is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from he_client import cli
from he_engine.errors import WrongKeyError
from he_engine.keys import RootKey
from he_server.config import ServerConfig
from he_server.config_file import read_toml
from he_server.operate.fsck import check
from he_server.storage.kek import SecretKek, open_kek
from tests.observing_fixture import observed
from tests.server_fixture import FakeClient, residues, running
from tests.store_fixture import made, path_of
from tests.torture.soak import deployed_environment

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DOCS = (ROOT / "docs" / "operations.md").read_text()
CONFIGS = ("hesearch.toml", "hesearch-container.toml")


# ---- hesearch health -----------------------------------------------------------------------------------------
def test_health_of_a_server_that_serves_and_one_that_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with observed(tmp_path) as endpoint:
        assert cli.main(["health", endpoint.address, "--insecure"]) == 0
        assert capsys.readouterr().out == "serving\n"
        assert cli.main(["health", endpoint.address, "--insecure", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"serving": True, "reason": ""}
        assert cli.main(["health", endpoint.address, "--timeout", "1"]) == 1, "TLS, where there is none"
    assert cli.main(["health", endpoint.address, "--insecure"]) == 1
    assert "not serving: UNAVAILABLE" in capsys.readouterr().out


def test_health_of_a_server_that_is_shutting_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from he_server.rpc.grpc_server import GrpcServer
    from he_server.service import Service

    config = ServerConfig(data=tmp_path, listen="127.0.0.1:0", insecure=True)
    with Service(config) as service:
        server = GrpcServer(service)
        server._health.enter_graceful_shutdown()
        assert cli.main(["health", server.address, "--insecure"]) == 1
        server.stop(0)
    assert "not serving: NOT_SERVING" in capsys.readouterr().out


def test_health_of_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=False):
        assert cli.main(["health", "127.0.0.1:1", "--insecure", "--timeout", "1"]) == 1
    assert cli.main(["health", "127.0.0.1:1", "--insecure", "--ca", "x.pem"]) == 2
    assert cli.main(["health", "127.0.0.1:1", "--ca", str(tmp_path / "none.pem")]) == 2
    assert "cannot be read" in capsys.readouterr().err


# ---- what is watched -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Each sample's name as Prometheus keeps it, with the names of its labels."""
    with observed(tmp_path_factory.mktemp("data")) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment()
        client.write(segment)
        client.commit(1, [segment])
        client.answer(2, residues(client.rng, 1))
        families = list(text_string_to_metric_families(endpoint.scrape()))
    found: dict[str, set[str]] = {"up": set()}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _rules() -> list[dict[str, str]]:
    """alert, expr and summary of each. The file keeps to a subset of YAML that this reads."""
    rules = []
    for block in re.split(r"\n +- alert: ", (DEPLOY / "hesearch-alerts.yml").read_text())[1:]:
        name, _, rest = block.partition("\n")
        expr = re.search(r"expr: (?:>-\n)?(.*?)\n +(?:for|labels): ", rest, re.DOTALL)
        summary = re.search(r'summary: "(.*)"', rest)
        assert expr and summary
        rules.append({"alert": name, "expr": expr[1], "summary": summary[1]})
    return rules


def _board() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana" / "hesearch.json").read_text())
    return board


def _expressions() -> list[str]:
    targets = [target for panel in _board()["panels"] for target in panel.get("targets", [])]
    return [rule["expr"] for rule in _rules()] + [target["expr"] for target in targets]


def test_every_expression_asks_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    expressions = _expressions()
    assert len(expressions) > 30
    for expr in expressions:
        names = re.findall(r"\b(?:hesearch|process)_\w+|\bup\b", expr)
        assert names, expr
        assert [name for name in names if name not in exported] == [], expr
        for name, selector in re.findall(r"\b((?:hesearch|process)_\w+)\{(.*?)\}", expr):
            labels = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", selector))
            assert labels <= exported[name] | {"job", "instance"}, expr
        (grouped,) = [set(" ".join(re.findall(r" by \((.*?)\)", expr)).replace(",", " ").split())]
        assert grouped <= set().union(*(exported[name] for name in names)) | {"instance"}, expr


def test_every_metric_of_ours_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    used = set(re.findall(r"\bhesearch_\w+", (DEPLOY / "grafana" / "hesearch.json").read_text()))
    base = {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in exported if name.startswith("hesearch")}
    unused = base - {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in used}
    assert unused == {"hesearch_blocks", "hesearch_scan_seconds"}


def test_reasons_and_methods_in_expressions_exist() -> None:
    from he_proto.status import _BY_NAME
    from tests.server_fixture import METHODS

    known = set(_BY_NAME) | {"INTERNAL", "OK", "hesearch", "$instance"} | {method.name for method in METHODS}
    values = {value for expr in _expressions() for value in re.findall(r'(?:=|!=|=~)"(.*?)"', expr)}
    assert values - known == set()


def test_alerts_are_explained() -> None:
    for rule in _rules():
        assert f"`{rule['alert']}`" in DOCS
    assert "hesearch-alerts.yml" in (DEPLOY / "prometheus.yml").read_text()


def test_the_dashboard_is_whole() -> None:
    board = _board()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one in panels:
        place = one["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(target["datasource"]["uid"] == "${datasource}" for target in one.get("targets", []))
    for a in panels:
        for b in panels:
            p, q = a["gridPos"], b["gridPos"]
            apart = (
                p["x"] + p["w"] <= q["x"]
                or q["x"] + q["w"] <= p["x"]
                or p["y"] + p["h"] <= q["y"]
                or q["y"] + q["h"] <= p["y"]
            )
            assert a is b or apart, (a["title"], b["title"])


# ---- what is installed ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_load(name: str) -> None:
    values = read_toml(DEPLOY / name)
    config = ServerConfig(**values | {"data": Path(values["data"])})
    assert config.tls_cert and config.kek and config.metrics and not config.insecure


def _unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "hesearch.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_and_its_configuration_agree() -> None:
    unit, config = _unit(), read_toml(DEPLOY / "hesearch.toml")
    assert unit["ExecStart"] == ["/opt/hesearch/bin/hesearch serve --config /etc/hesearch/hesearch.toml"]
    assert config["data"] == f"/var/lib/{unit['StateDirectory'][0]}"
    (name,) = {credential.partition(":")[0] for credential in unit["LoadCredential"]}
    assert config["kek"] == f"file:/run/credentials/hesearch.service/{name}"
    assert float(unit["TimeoutStopSec"][0]) > ServerConfig(data=Path()).grace_s + 10


def test_unit_and_image_have_the_environment_that_the_soak_has() -> None:
    ours = deployed_environment()
    assert set(ours) == {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"}
    image = dict(word.split("=", 1) for name, words in _instructions() if name == "ENV" for word in words.split())
    assert {name: image.get(name) for name in ours} == ours


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Every directive is known and well-formed, and the exposure stays as low as it is."""
    unit = tmp_path / "hesearch.service"
    unit.write_text((DEPLOY / "hesearch.service").read_text().replace("/opt/hesearch/bin/hesearch", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit]
    assert subprocess.run(security, capture_output=True, timeout=60).returncode == 0


def _instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_the_image_is_built_from_what_is_here() -> None:
    instructions = _instructions()
    copied = [argument.split()[:-1] for word, argument in instructions if word == "COPY" and "--from" not in argument]
    sources = [source for group in copied for source in group]
    assert all((ROOT / source).exists() for source in sources)
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(sources), "what is not kept is not there to be copied"
    assert [argument for word, argument in instructions if word == "USER"] == ["10001:10001"]
    for word, argument in instructions:
        if word in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(argument), list), "no shell, so that signals arrive"


def test_the_image_starts_what_there_is() -> None:
    arguments = dict(_instructions())
    parser = cli.build_parser()
    served = parser.parse_args(json.loads(arguments["CMD"]))
    config = read_toml(DEPLOY / "hesearch-container.toml")
    assert str(served.config) == "/etc/hesearch/hesearch.toml"
    assert arguments["VOLUME"] == config["data"]
    assert [port.rpartition(":")[2] for port in (config["listen"], config["metrics"])] == arguments["EXPOSE"].split()
    health = arguments["HEALTHCHECK"].partition("bin/hesearch ")[2].replace('"', "").split()
    checked = parser.parse_args(health)
    assert checked.command == "health" and not checked.insecure


# ---- the document --------------------------------------------------------------------------------------------
def test_commands_in_the_document_exist() -> None:
    parser = cli.build_parser()
    (commands,) = [set(action.choices) for action in parser._actions if action.dest == "command"]
    named = set(re.findall(r"(?:bin/|^ *|`)hesearch ([a-z]+)", DOCS, re.MULTILINE))
    assert {"backup", "restore", "fsck", "kek", "rekey"} <= named <= commands, named - commands
    for path in re.findall(r"\]\((?!http)([^)#]+)", DOCS):
        assert (ROOT / "docs" / path).exists(), path


def _blocks(title: str) -> list[str]:
    """The shell commands below a heading of the second level, but those for a container."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", DOCS, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in blocks if not block.startswith("docker ")]


class _Machine:
    """Where the documented commands run: their folders lie in `root`; systemctl and chown do nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data, self.backup, self.kek = root / "data", root / "backup", root / "etc" / "kek"
        tools = {"systemctl": "exit 0", "chown": "exit 0", "hesearch": f'exec {sys.executable} -m he_client.cli "$@"'}
        for folder in ("bin", "etc"):
            (root / folder).mkdir()
        for name, text in tools.items():
            (root / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (root / "bin" / name).chmod(0o755)

    def run(self, commands: str) -> str:
        """All succeed."""
        places = {"/mnt/backup/hesearch": self.backup, "/var/lib/hesearch": self.data, "/etc/hesearch": self.kek.parent}
        for documented, here in places.items():
            commands = commands.replace(documented, str(here))
        environment = os.environ | {"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout


def test_backup_restore_repair_and_new_keys_as_documented(tmp_path: Path) -> None:
    """Each block of the section, in its order, as it is written."""
    machine = _Machine(tmp_path)
    (made_by,) = re.findall(r"bin/(hesearch kek new \S+)", DOCS)
    machine.run(made_by)
    old = machine.kek.read_bytes()
    segment, *_ = made(machine.data, open_kek(f"file:{machine.kek}"), [[b"i" * 5000, b"h"], [b"j"]])
    backing_up, restoring, repairing, rotating, rekeying = _blocks("Backup, check, restore")

    assert "clean: 1 collections, 2 segments" in machine.run(backing_up)
    assert "; 1 of them, " in machine.run(backing_up), "the catalogue alone"
    assert "clean: 1 collections, 2 segments" in machine.run(restoring)
    assert (tmp_path / "data.old").exists()

    path = path_of(machine.data, segment)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not check(machine.data, SecretKek(RootKey(old))).clean
    assert "fetched from the source" in machine.run(repairing)
    assert check(machine.data, SecretKek(RootKey(old))).clean

    machine.run(rotating)
    new = machine.kek.read_bytes()
    assert new != old == (machine.kek.parent / "kek.old").read_bytes()
    with pytest.raises(WrongKeyError):
        check(machine.data, SecretKek(RootKey(old)))
    assert check(machine.backup, SecretKek(RootKey(old))).clean, "as documented: a backup keeps the KEK of its time"

    assert "wrote 2 segment files anew" in machine.run(rekeying)
    assert {path.suffix for path in machine.data.glob("segments/*/*")} == {".2"}
    machine.run(backing_up)


def test_help_of_the_operators_commands_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.build_parser()
    for command in ("fsck", "backup", "restore", "kek", "kek new", "kek rotate", "rekey"):
        with pytest.raises(SystemExit):
            parser.parse_args([*command.split(), "--help"])
        examples = re.findall(r"^  hesearch (.*)$", capsys.readouterr().out, re.MULTILINE)
        assert examples, command
        for example in examples:
            assert parser.parse_args(example.split()).command == command.split()[0]

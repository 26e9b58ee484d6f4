"""docs/runbook.md: its commands parse, what it says to look for is there, and its restores and rotations work."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from he_client import Client, CollectionKey, cli
from he_engine.errors import HesearchError, RollbackError, WrongKeyError
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from he_server.storage.kek import open_kek
from he_server.storage.store import Store
from tests.conftest import unit_rows
from tests.observing_fixture import observed
from tests.postgres_fixture import PostgresServer, postgres
from tests.s3_fixture import S3Server, s3, s3_server

__all__ = ["postgres", "s3", "s3_server"]

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "runbook.md").read_text()
FIGURES = ROOT / "docs" / "figures"
DATABASE = "postgresql://hesearch@db.example.org/hesearch"
DUMP = "/mnt/backup/hesearch.dump"


def _blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def _lines() -> list[list[str]]:
    joined = "".join(_blocks()).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line]


def _spans() -> list[str]:
    """What stands in backticks, but for the shell blocks; a span may go over the end of a line."""
    text = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", text)]


# ---- what it names -------------------------------------------------------------------------------------------
def test_every_command_of_ours_parses() -> None:
    parser, ours = cli.build_parser(), [line[1:] for line in _lines() if line[0] == "hesearch"]
    ours += [shlex.split(span)[1:] for span in _spans() if re.match(r"hesearch \w+ .*--", span)]
    assert {arguments[0] for arguments in ours} == {"health", "trust", "repair", "serve", "fsck", "restore", "plan"}
    for arguments in ours:
        parser.parse_args(arguments)
    (commands,) = [set(action.choices) for action in parser._actions if action.dest == "command"]
    assert {span.split()[1] for span in _spans() if span.startswith("hesearch ")} <= commands


def test_other_commands_are_those_of_the_machine() -> None:
    known = {"journalctl", "curl", "systemctl", "du", "mv", "install", "psql", "pg_dump", "pg_restore", "kubectl"}
    assert {line[0] for line in _lines()} - {"hesearch", "/opt/hesearch/bin/pip"} == known
    units = {line[-1] for line in _lines() if line[0] == "systemctl"}
    assert units == {"hesearch"} and (ROOT / "deploy" / "hesearch.service").exists()
    for block in _blocks():
        subprocess.run(["bash", "-n", "-c", block], check=True, timeout=60)
    (restarted,) = [line for line in _lines() if line[0] == "kubectl" and "restart" in line]
    assert f"name: {restarted[-1]}\n" in (ROOT / "deploy" / "kuberay" / "front-ends.yaml").read_text()
    extras = [line[-1] for line in _lines() if line[0].endswith("/pip")]
    assert extras == [".[cluster,otel]"]


def test_what_is_to_be_seen_is_there(tmp_path: Path) -> None:
    with observed(tmp_path) as endpoint:
        exported = endpoint.scrape()
    metrics = {span.partition("{")[0] for span in _spans() if re.match(r"(hesearch|process)_[a-z_]+({.*})?$", span)}
    assert len(metrics) > 8
    for name in metrics:
        assert re.search(rf"^{name}[ {{]", exported, re.MULTILINE), name
    groups = yaml.safe_load((ROOT / "deploy" / "hesearch-alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    named = {span for span in _spans() if re.fullmatch(r"Hesearch[A-Z]\w+", span)}
    assert len(named) > 4 and named <= alerts
    from he_engine import errors

    for span in _spans():
        if re.fullmatch(r"[A-Z][a-z]+[A-Z]\w+|Unavailable|Unauthenticated", span) and span not in alerts:
            assert issubclass(getattr(errors, span), HesearchError)


def test_what_logs_say_is_what_they_say() -> None:
    """Every span of several words that is no command is a message of the server's code."""
    source = "\n".join(path.read_text() for path in sorted((ROOT / "server").rglob("*.py")))
    messages = [
        span.strip("… ")
        for span in _spans()
        if " " in span and not re.match(r"(hesearch|python|journalctl|up|ray|kubectl) |.*× ", span)
    ]
    assert len(messages) > 10
    reloaded = re.compile(r"^certificates: (reloaded|not reloaded, the old ones stay)$")
    for message in messages:
        if found := reloaded.match(message):
            assert '"certificates"' in source and f'"%s: {found[1]}' in source
            continue
        written = message.replace("while storing a segment", "storing a segment")
        written = written.replace("while reading a segment", "reading a segment")
        assert written in source, message


def test_settings_exist() -> None:
    settings = set(ServerConfig.__dataclass_fields__)
    named = {"cache_bytes", "orphan_age_s", "connection_age_s", "tls_client_ca", "previous_kek", "data_key_days"}
    named |= {
        "cluster_wait_s",
        "grace_s",
        "max_inflight_bytes",
        "index_memory_bytes",
        "max_transfers",
        "max_segment_bytes",
    }
    assert named <= set(_spans()) and named <= settings
    config = ServerConfig(data=Path("data"))
    assert config.max_transfers * config.max_segment_bytes == 16 << 30
    assert (config.connection_age_s, config.orphan_age_s) == (3600, 24 * 3600)


# ---- its figures ---------------------------------------------------------------------------------------------
def _figures(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIGURES / f"{name}.json").read_text())
    return found


def test_the_figures_are_those_that_were_measured() -> None:
    words = re.sub(r"\s+", " ", TEXT)
    services = {profile: _figures(f"service_{profile}") for profile in ("compact", "exact", "precise")}
    beside = [figures["server_rss_beyond_index_bytes"] / 1e6 for figures in services.values()]
    assert f"{min(beside):.0f} to {max(beside):.0f} MB beside them" in words
    compact, exact = services["compact"], services["exact"]
    assert f"{compact['index_bytes'] / 1e9:.2f} GB for 1,000,000 × 512 in `compact`" in words
    assert f"{exact['index_bytes'] / 1e9:.2f} in `exact` and `precise`" in words
    rows = compact["stored_bytes_per_row"], exact["stored_bytes_per_row"]
    assert f"{rows[0]:,.0f} bytes a row of dimension 512 in `compact`, {rows[1]:,.0f} in the others" in words
    alone = compact["server_alone_s"], exact["server_alone_s"]
    assert f"took {alone[0]:.3f} s for a query of 1,000,000 × 512 in `compact`, {alone[1]:.3f} in `exact`" in words

    cold = _figures("cold_start")
    assert f"at {1000 * cold['cold_gb_per_s']:.0f} MB/s of one S3 server" in words
    rolled = _figures("torture/restarts")
    assert f"in {rolled['runs']} restarts under load no search failed" in words and rolled["failed_searches"] == 0
    assert f"{rolled['down_s']['median']:.2f} s in the median, {rolled['down_s']['max']:.2f} s at most" in words
    crashed = _figures("torture/crash_postgres")
    assert f"In {crashed['runs']} crashes" in words and crashed["lost"] == 0


def test_the_figures_of_the_catalogue_are_those_that_were_measured() -> None:
    words, figures = re.sub(r"\s+", " ", TEXT), _figures("catalogue")
    each = figures["bytes_per_segment"]
    assert f"{each:,.0f} bytes a segment and {figures['wal_bytes_per_add']:,.0f} bytes of its log" in words
    count = 10**12 / (64 << 20)
    assert f"a terabyte of segments of 64 MiB is {count:,.0f} rows, {count * each / 1e6:.1f} MB (extrapolated)" in words
    assert f"took {1000 * figures['look_s']:.2f} ms" in words
    assert f"{1000 * figures['commit_s']:.0f} ms, and opening those {figures['open_s']:.2f} s" in words


@pytest.mark.parametrize("command", sorted({span for span in _spans() if span.startswith("python -m")}))
def test_the_commands_of_figures_made_them(command: str) -> None:
    _, _, module, *arguments = command.split()
    importlib.import_module(module)
    made = []
    for path in [*FIGURES.glob("*.json"), *FIGURES.glob("torture/*.json")]:
        figures = json.loads(path.read_text())
        name = "service" if path.stem.startswith("service_") else path.stem
        if module.endswith(f".{name}"):
            given = figures.get("command", "").partition(module)[2].split() or [
                word for key, value in figures["arguments"].items() for word in (f"--{key}", str(value))
            ]
            profile = figures.get("arguments", {}).get("profile", "")
            here = [profile if word == "PROFILE" else word for word in arguments]
            made.append(set(here) == set(given))
    assert made and all(made)


# ---- what it says to do --------------------------------------------------------------------------------------
@pytest.fixture
def where(postgres: PostgresServer, s3: S3Server) -> dict[str, Any]:
    return {"catalogue": postgres.new_database(), "segments": s3.new_bucket()}


def _documented(program: str, where: dict[str, Any], folder: Path) -> None:
    """Runs the one documented command of that program, with this database and folder in the place of the named."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian: apt install postgresql-client)")
    (line,) = [line for line in _lines() if line[0] == program]
    here = [one.replace(DATABASE, where["catalogue"]).replace(DUMP, str(folder / "dump")) for one in line]
    done = subprocess.run(here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if program == "psql":
        assert re.search(r"revision \| schema_version\s[-+\s]+\d+ \| +\d+", done.stdout)


@pytest.fixture
def serving(tmp_path: Path, where: dict[str, Any]) -> Iterator[Callable[[str], ExitStack]]:
    """Starts one server on a folder of that name; it ends with what is returned, which knows its `address`."""

    def start(name: str) -> ExitStack:
        opened: Any = ExitStack()
        config = ServerConfig(data=tmp_path / name, listen="127.0.0.1:0", insecure=True, threads=1, **where)
        service = opened.enter_context(Service(config))
        server = GrpcServer(service)
        opened.callback(server.stop, 0)
        opened.address = server.address
        return opened

    yield start


def test_postgresql_is_restored_as_documented(
    serving: Callable[[str], Any], where: dict[str, Any], tmp_path: Path
) -> None:
    """A dump while a server runs; more is written; the dump is restored; a server on an empty folder goes on."""
    key, vectors = CollectionKey.generate(), unit_rows(np.random.default_rng(5), 60, 16)
    with serving("a") as one, Client(one.address, insecure=True) as client:
        notes = client.create_collection("notes", dim=16, key=key)
        notes.insert(range(50), vectors[:50], progress=False)
        _documented("psql", where, tmp_path)
        _documented("pg_dump", where, tmp_path)
        notes.insert(range(50, 60), vectors[50:], progress=False)
    _documented("pg_restore", where, tmp_path)
    with serving("b") as other, Client(other.address, insecure=True) as fresh:
        older = fresh.open_collection("notes", key=key)
        assert (older.count(), older.search(vectors[7], k=1)[0].id) == (50, 7)
        older.insert([99], vectors[55:56], progress=False)
        assert older.search(vectors[55], k=1)[0].id == 99


def test_who_saw_more_than_the_restored_state_notices(
    serving: Callable[[str], Any], where: dict[str, Any], tmp_path: Path
) -> None:
    key, vectors = CollectionKey.generate(), unit_rows(np.random.default_rng(6), 60, 16)
    with serving("a") as one:
        client = Client(one.address, insecure=True)
        notes = client.create_collection("notes", dim=16, key=key)
        notes.insert(range(50), vectors[:50], progress=False)
        _documented("pg_dump", where, tmp_path)
        notes.insert(range(50, 60), vectors[50:], progress=False)
        _documented("pg_restore", where, tmp_path)  # while it runs, so that the same client asks the same server
        with pytest.raises(RollbackError):
            notes.search(vectors[7], k=1)
        client.trust("notes")
        assert client.open_collection("notes", key=key).count() == 50
        client.close()


def test_a_new_key_for_several_servers_as_documented(where: dict[str, Any], tmp_path: Path) -> None:
    for name in ("kek", "kek.new"):
        assert cli.main(["kek", "new", str(tmp_path / name)]) == 0
    old, new = (open_kek(f"file:{tmp_path / name}") for name in ("kek", "kek.new"))
    (documented,) = [line[1:] for line in _lines() if line[:2] == ["hesearch", "serve"]]
    parsed = cli.build_parser().parse_args(documented)
    assert (parsed.kek, parsed.previous_kek) == ("file:/etc/hesearch/kek.new", "file:/etc/hesearch/kek")

    one, two = Store(tmp_path / "a", kek=old, **where), Store(tmp_path / "b", kek=old, **where)
    one.close()
    one = Store(tmp_path / "a", kek=new, previous_kek=old, **where)
    assert two.collections() == [], "it goes on"
    two.close()
    with pytest.raises(WrongKeyError):
        Store(tmp_path / "b", kek=old, **where)
    for settings in ({"kek": new, "previous_kek": old}, {"kek": new}):
        Store(tmp_path / "b", **settings, **where).close()
    one.close()


def test_a_server_whose_database_is_away_is_not_restarted_for_it(tmp_path: Path) -> None:
    try:
        database = PostgresServer()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with database, observed(tmp_path, catalogue=database.new_database()) as endpoint, database.away():
        assert cli.main(["health", endpoint.address, "--insecure"]) == 0

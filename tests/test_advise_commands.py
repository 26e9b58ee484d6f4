"""`hesearch advise`: its files and commands do what they say, and it asks where it should."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from he_client import cli
from he_client.layers.answers import CHOICES, NUMBERS, PROFILES, Callers
from he_client.layers.choosing import advise
from he_client.layers.commands import CONFIG, commands, files
from he_client.layers.commands import DIM as DIM_OF_COMMANDS
from he_server.config import ServerConfig
from he_server.config_file import read_toml
from tests.test_advise import every_advice


def test_every_printed_command_parses() -> None:
    lines = {line for advice in every_advice() for run in (commands(advice),) for line in (*run.operator, *run.user)}
    ours = [shlex.split(line.partition(" > ")[0]) for line in lines if line.startswith("hesearch ")]
    assert len(ours) == len(lines) - 1, "and one printf"
    assert {"certs", "policy", "kek", "serve", "backup", "keygen", "create", "search"} <= {words[1] for words in ours}
    parser = cli.build_parser()
    for words in ours:
        parser.parse_args(words[1:])


def test_every_configuration_is_taken(tmp_path: Path) -> None:
    texts = {tuple(files(advice).items()) for advice in every_advice()}
    assert len(texts) > 10
    for number, found in enumerate(texts):
        path = tmp_path / f"{number}.toml"
        path.write_text(dict(found)[CONFIG])
        values = read_toml(path)
        config = ServerConfig(**values | {"data": Path(values["data"])})
        assert config.insecure is not bool(config.tls_cert)
        assert bool(config.quotas) is (len(found) == 2)


@pytest.mark.parametrize("profile", PROFILES)
def test_print_config_takes_what_is_written(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["advise", "--profile", profile, "--write", "server", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {path.name: path.read_text() for path in (tmp_path / "server").iterdir()} == said["files"]
    assert cli.main(["serve", "--config", "server/hesearch.toml", "--print-config"]) == 0
    assert 'tls_cert = "certs/server.pem"' in capsys.readouterr().out


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quotas.toml").write_text("mine")
    assert cli.main(["advise", "--profile", "regulated", "--write", str(tmp_path)]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["quotas.toml"]
    assert (tmp_path / "quotas.toml").read_text() == "mine"
    assert cli.main(["advise", "--profile", "regulated", "--write", str(tmp_path / "no" / "folder")]) == 3
    assert capsys.readouterr().out == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_asks_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = ["", "", "", "", "0.99"]  # rows, dim; no latency is asked for without them; link, round trip, recall
    lines = ["hostile", "", "no such", "several", *[""] * (len(CHOICES) - 3), *numbers]
    monkeypatch.setattr(sys, "stdin", _Terminal("\n".join(lines) + "\n"))
    assert cli.main(["advise"]) == 0
    said = capsys.readouterr()
    assert "got 'no such', expected one of one, several" in said.err
    given = [line.rpartition(": ")[2] for line in said.out.splitlines() if line.startswith("  * ")][: len(CHOICES) + 3]
    assert (given[0], given[2], given[-1]) == ("hostile", "several", "0.99")
    assert "Not covered" in said.out


def test_empty_lines_are_the_baseline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal("\n" * (len(CHOICES) + len(NUMBERS))))
    assert cli.main(["advise"]) == 0
    asked = capsys.readouterr().out
    assert cli.main(["advise", "--profile", "baseline"]) == 0
    assert capsys.readouterr().out == asked


def test_answers_that_end_early(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal("hostile\n"))
    assert cli.main(["advise"]) == 2
    assert "network: the answers ended here" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--json", "--operator hostile", "--profile baseline", "--recall 1"])
def test_with_options_it_never_asks(
    options: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal())
    assert cli.main(["advise", *options.split()]) == 0
    assert capsys.readouterr().err == ""


def test_options_change_single_answers_of_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "--profile", "regulated", "--callers", "one", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answers"]["callers"] == Callers.ONE.value and said["answers"]["disk"] == "stolen"
    assert list(said["files"]) == [CONFIG]


def test_a_latency_is_measured_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "--rows", "3000", "--dim", "16", "--latency-ms", "0.001", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["latency_ms"] > 0.001
    assert [one["wish"] for one in said["unmet"]] == ["a query within 0.001 ms"]


@contextlib.contextmanager
def _serving(words: list[str]) -> Iterator[None]:
    """A server process in the current folder, until the block ends."""
    command = [sys.executable, "-m", "he_server", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().startswith("listening on ")
            yield
        finally:
            process.terminate()


def _run(line: str, address: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a printed line says: here, or by a shell if it is none of ours. The passphrase comes from a file."""
    if not line.startswith("hesearch "):
        subprocess.run(["bash", "-e", "-c", line], check=True)
        return ""
    said, _, file = line.replace("localhost:50051", address).partition(" > ")
    words = shlex.split(said)[1:]
    if re.match("keygen|key|create|insert|search", words[0]):
        words += ["--passphrase-file", "pass.txt"]
    assert cli.main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    if file:
        Path(file).write_text(out)
    return out


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_serves_a_search_as_printed(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files and all its commands, but for the address."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    vectors = np.random.default_rng(0).normal(size=(50, DIM_OF_COMMANDS))
    np.save("vectors.npy", vectors)
    np.save("query.npy", vectors[7])
    texts = {
        "ids.txt": "\n".join(map(str, range(50))), "pass.txt": "a long passphrase of ours\n",
        "names.txt": "Anna Meyer\n",
        "notes.csv": "id,note\n1,Anna Meyer called anna@example.org\n",
    }  # fmt: skip
    advice = advise(PROFILES[profile])
    for name, text in (texts | files(advice)).items():
        Path(name).write_text(text.replace("0.0.0.0:50051", address))
    run = commands(advice)
    at = next(number for number, line in enumerate(run.operator) if " serve " in line)
    for line in run.operator[:at]:
        _run(line, address, capsys)
    with _serving(shlex.split(run.operator[at])[2:]):
        said = [_run(line, address, capsys) for line in (*run.user, *run.operator[at + 1 :])]
    assert re.search(r"^query 0\n +(0\.999|1\.000)\d+  7$", "\n".join(said), re.MULTILINE), said
    assert {"head.json", "backup", "notes.archive", "shares"} <= {path.name for path in tmp_path.iterdir()}
    assert "log" in json.loads(Path("head.json").read_text().splitlines()[0])
    if "text" in advice.reasons:
        safe = Path("safe.csv").read_text()
        assert "Anna" not in safe and "example.org" not in safe

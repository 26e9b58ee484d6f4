"""deploy/compose.yaml as Compose reads it, and the commands of docs/cluster.md that make its secrets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "deploy" / "compose.yaml"
DOCS = (ROOT / "docs" / "cluster.md").read_text()
SECRETS = "/run/secrets/"  #: where a container finds them


def services() -> dict[str, dict[str, Any]]:
    """By name, with `$$` read as `$`: Compose would replace names otherwise."""
    return {name: _unescaped(service) for name, service in document()["services"].items()}


def document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def _unescaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unescaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_unescaped(one) for one in value]
    return value.replace("$$", "$") if isinstance(value, str) else value


def compose() -> list[str] | None:
    """The command of a Compose that is installed: no engine is asked for what it reads."""
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    beside = Path(sys.executable).parent / "docker-compose"
    found = shutil.which("docker-compose") or (str(beside) if beside.exists() else None)
    return [found] if found else None


def documented() -> list[str]:
    """The lines of the one block of shell commands in the document's section about Compose."""
    (section,) = re.findall(r"^## 4\. .*?(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(block).replace("\\\n", " ").splitlines()


def made_secrets(folder: Path) -> Path:
    """The folder of secrets that the documented commands make in an empty folder, which belong to who runs this."""
    tools = folder / "tools"
    tools.mkdir()
    for name, text in {"chown": "exit 0", "hesearch": f'exec {sys.executable} -m he_client.cli "$@"'}.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    commands = [line for line in documented() if not re.match(r"docker |hesearch health ", line)]
    (folder / "deploy").mkdir()
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "\n".join(commands)], cwd=folder, timeout=120, text=True,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder / "deploy" / "secrets"

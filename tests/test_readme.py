"""The figures in the documents are those that were measured: made from the committed JSON files."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import layers_page, report, table
from he_client.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_is_the_measured_one() -> None:
    measured = table.render(ROOT / "docs" / "figures")
    assert measured in (ROOT / "README.md").read_text(), "run `python -m benchmarks.table`"


def test_the_report_is_the_measured_one() -> None:
    written = ROOT / "docs" / "benchmarks.md"
    if not written.exists():
        pytest.skip("docs/benchmarks.md is not written yet")
    measured = report.render(ROOT / "docs" / "figures", "figures")
    assert written.read_text() == measured, "run `python -m benchmarks.report docs/figures`"


def test_the_page_of_layers_is_the_measured_one() -> None:
    measured = layers_page.render(ROOT / "docs" / "figures", "figures")
    written = (ROOT / "docs" / "overhead.md").read_text()
    assert written == measured, "run `python -m benchmarks.layers_page docs/figures`"


def test_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("[CS]*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def _shell_blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_shell_block_runs_as_printed(tmp_path: Path) -> None:
    """But for the port, in an empty folder; nothing asks."""
    (block,) = [block for block in _shell_blocks() if "hesearch search" in block]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "trap 'kill $(jobs -p); wait' EXIT\n" + block.replace("50051", str(port))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^query 0\n +(0\.999|1\.000)\d+  7$", ran.stdout, re.MULTILINE), ran.stdout


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^hesearch (\w+)", "\n".join(_shell_blocks()), re.MULTILINE)))
)
def test_commands_are_there(command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args([command, "--help"])
    assert stopped.value.code == 0

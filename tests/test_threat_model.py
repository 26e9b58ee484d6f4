"""docs/threat-model.md names tests for its claims: each exists, and every threat has one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/threat-model.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def functions(path: str) -> frozenset[str]:
    """The test functions of a file, at its top level."""
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def missing(text: str) -> list[str]:
    return [f"{path}::{name}" for path, name in NAMED.findall(text)
            if not (ROOT / path).is_file() or name not in functions(path) or not name.startswith("test_")]  # fmt: skip


def threats(text: str) -> list[list[str]]:
    """The cells of each row of the table of threats."""
    table = text.split("## Threats")[1].split("## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] != "Threat"]


def test_every_named_test_exists() -> None:
    assert not missing(DOCUMENT.read_text())


def test_every_threat_has_a_layer_and_a_test() -> None:
    rows = threats(DOCUMENT.read_text())
    assert len(rows) >= 25
    assert [row[0] for row in rows if len(row) not in (3, 4) or not row[1].strip() or not NAMED.search(row[2])] == []


def test_a_test_that_is_gone_is_noticed() -> None:
    here = "tests/test_threat_model.py"
    assert missing(f"`{here}::test_no_such_thing` `tests/test_none.py::test_x` `{here}::missing`") == [
        f"{here}::test_no_such_thing",
        "tests/test_none.py::test_x",
        f"{here}::missing",
    ]
    assert not missing(f"`{here}::test_a_test_that_is_gone_is_noticed`")

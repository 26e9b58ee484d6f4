"""No line of code puts a score or a secret into an error, a warning, a log, a metric or a span.

What code *did* say is searched in tests/test_logs.py and tests/test_score_release.py. Here every place that says
something is read, also where no test comes by: what it quotes has none of FORBIDDEN in it, unless only of its size or
type. A value that was given another name before is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = frozenset(
    {
        *(
            "score",
            "scores",
            "decoded",
            "products",
            "hit",
            "hits",
            "vector",
            "vectors",
            "noise",
            "ciphertext",
            "residues",
        ),
        *("passphrase", "secret", "secrets", "root", "_root", "seed", "salt", "weights", "sums", "s", "t", "z"),
    }
)
#: Methods of loggers, spans and metrics, and of warnings.
SAYING = frozenset(
    {
        *("debug", "info", "warning", "error", "exception", "critical", "log", "warn"),
        *("set_attribute", "set_attributes", "add_event", "labels"),
    }
)
SIZES = frozenset({"len", "type", "bool"})
SHAPES = frozenset({"shape", "dtype", "nbytes", "size", "ndim"})


def quoted(tree: ast.AST) -> Iterator[tuple[int, ast.expr]]:
    """What is raised or said, each argument with its line."""
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call):
            continue
        if node is not call or (isinstance(call.func, ast.Attribute) and call.func.attr in SAYING):
            yield from ((call.lineno, said) for said in (*call.args, *(k.value for k in call.keywords)))


def names(expression: ast.AST) -> Iterator[str]:
    """Those whose value would be told; not those of which only a size, shape or type is."""
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and expression.func.id in SIZES:
        return
    if isinstance(expression, ast.Attribute) and expression.attr in SHAPES:
        return
    if isinstance(expression, ast.Name):
        yield expression.id
    if isinstance(expression, ast.Attribute):
        yield expression.attr
    for child in ast.iter_child_nodes(expression):
        yield from names(child)


def leaks(source: str) -> list[tuple[int, str]]:
    said = quoted(ast.parse(source))
    return [(line, found) for line, expression in said for found in names(expression) if found in FORBIDDEN]


def test_nothing_that_is_said_quotes_a_score_or_a_secret() -> None:
    files = [path for top in ("he_engine", "proto", "server", "client") for path in (ROOT / top).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): leaks(path.read_text()) for path in files}
    assert {path: what for path, what in found.items() if what} == {}
    assert sum(len(list(quoted(ast.parse(path.read_text())))) for path in files) > 500, "places that say something"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("raise InvalidInput(f'got {scores[0]:.3f}')", ["scores"]),
        ("raise InvalidInput(f'got {hit.score}')", ["score", "hit"]),
        ("raise InvalidInput('got ' + str(self._root))", ["_root"]),
        ("log.info('%s', found.scores)", ["scores"]),
        ("span.set_attribute('best', float(decoded.max()))", ["decoded"]),
        ("counter.labels(hits)", ["hits"]),
        ("warnings.warn(f'{passphrase}', stacklevel=2)", ["passphrase"]),
        ("raise InvalidInput(f'{len(scores)} of {scores.shape} {type(hit).__name__}')", []),
        ("raise InvalidInput(f'dim: got {dim}')", []),
    ],
)
def test_a_line_that_does_is_noticed(line: str, expected: list[str]) -> None:
    assert [name for _, name in leaks(line)] == expected

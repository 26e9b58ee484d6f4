"""No kernel needs over 5 % more instructions than `docs/figures/kernels.json` says; and what compares the two."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import Any

import pytest

from benchmarks import kernels

TOOLS = {"compiler": "GCC 12", "valgrind": "valgrind-3.19.0", "architecture": "x86_64", "targets": ["avx2"]}


def figures(**counts: float) -> kernels.Figures:
    return {name: {"unit": "residue", "count": count} for name, count in counts.items()}


def test_no_kernel_needs_more_instructions_than_recorded() -> None:
    if not shutil.which("valgrind"):
        pytest.skip(kernels.MISSING)
    record = json.loads(kernels.RECORD.read_text())
    if reason := kernels.incomparable(record["tools"], kernels.tools()):
        pytest.skip(reason)
    comparison = kernels.compare(record["kernels"], kernels.count_instructions())
    for line in comparison.falls:
        warnings.warn(line, stacklevel=1)
    if comparison.failures:
        pytest.fail("\n".join(comparison.failures), pytrace=False)


@pytest.mark.parametrize(
    ("counted", "failures", "falls"),
    [(2.0, 0, 0), (2.0999, 0, 0), (2.1001, 1, 0), (1.9001, 0, 0), (1.8999, 0, 1), (40.0, 1, 0)],
)
def test_only_a_rise_over_five_percent_fails(counted: float, failures: int, falls: int) -> None:
    got = kernels.compare(figures(a=2.0, b=1.0), figures(a=counted, b=1.0))
    assert (len(got.failures), len(got.falls)) == (failures, falls)
    assert all(line.startswith(f"a: {counted:.4f} instructions a residue, recorded 2.0000 (") for line in got.failures)
    assert all(kernels.RENEW in line for line in got.falls)


@pytest.mark.parametrize(
    ("recorded", "counted"),
    [
        (figures(a=1.0), figures(a=1.0, b=1.0)),
        (figures(a=1.0, b=1.0), figures(a=1.0)),
        (figures(b=1.0), {"b": {"unit": "row", "count": 1.0}}),
    ],
)
def test_other_kernels_and_units_ask_for_a_new_record(recorded: kernels.Figures, counted: kernels.Figures) -> None:
    (line,) = kernels.compare(recorded, counted).failures
    assert line.startswith("b: ") and line.endswith(f"To renew the record: {kernels.RENEW}")


@pytest.mark.parametrize(
    "change",
    [{"compiler": "clang 19"}, {"valgrind": "valgrind-3.24.0"}, {"architecture": "aarch64"}, {"targets": ["portable"]}],
)
def test_counts_of_other_tools_are_not_compared(change: dict[str, Any]) -> None:
    assert kernels.incomparable(TOOLS, TOOLS) is None
    ((name, got),) = change.items()
    assert kernels.incomparable(TOOLS, TOOLS | change) == (
        f"the record was made with other tools ({name}: got {got}, recorded {TOOLS[name]}). "
        f"To renew it: {kernels.RENEW}"
    )


def test_only_instructions_inside_the_extension_modules_count() -> None:
    """Callees, whose costs their callers repeat, and Python's own instructions are left out."""
    answer, client = kernels.MODULES
    part = (
        f"cmd: python\npositions: line\nevents: Ir\nsummary: 1000\n\nob=/lib/python\nfn=call\n0 5\ncob={answer}\n"
        f"cfn=a\ncalls=1 0 \n0 70\n7 6\n\nob={answer}\nfl=???\nfn=a\n0 40\ncfn=b\ncalls=1 0 \n0 30\n3 2\n\n"
        f"fn=b\n0 28\n\nob=/lib/libc\nfn=memcpy\n0 90\n\nob={client}\nfn=c\n0 100\n\ntotals: 271\n"
    )
    assert kernels.own_cost(part) == 40 + 2 + 28 + 100


def test_the_record_has_every_kernel_that_this_machine_counts() -> None:
    recorded = json.loads(kernels.RECORD.read_text())
    here = {c.name for p in kernels.PROFILES for t in kernels.targets() for c in kernels.calls(p, t)}
    if recorded["tools"]["targets"] == kernels.targets():
        assert here == recorded["kernels"].keys()

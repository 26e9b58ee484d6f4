"""docs/reliability.md, from the JSON files of one `make torture` and the list of defects in defects.toml.

    python -m tests.torture.report build/torture/full build/torture/full/reliability.md

1 if a test failed. What was not run says so.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.markdown import Figures, Run, table
from tests.fuzz.targets import TARGETS

DEFECTS = Path(__file__).parent / "defects.toml"
OVERLOAD_ASKED = "accepted calls' p99 ≤ 2 × unloaded; the rest refused within 100 ms"
FIGURES, COMMITTED = Path("docs/figures/torture"), Path("docs/reliability.md")


@dataclass(frozen=True, slots=True)
class Test:
    """One line of the table, and what is said of it below."""

    title: str
    file: str
    asked: str
    measured: Callable[[Figures], str]
    met: Callable[[Figures], bool]
    how: str = ""  #: empty: the test before says it


def _clean(figures: Figures) -> bool:
    return not (figures["failures"] or figures.get("lost") or figures.get("phantom"))


def _kills(figures: Figures) -> str:
    counts = (f"{figures[what]} {what}" for what in ("lost", "phantom", "failures"))
    return f"{figures['runs']:,} runs: {', '.join(counts)}"


def _slope(figures: Figures) -> str:
    whole = figures["rss"]["whole"]
    return (
        f"{figures['seconds'] / 60:.0f} minutes, {figures['counts']['searches checked']:,} searches checked: "
        f"{figures['failures']} failures, {figures['lost']} lost, {figures['phantom']} phantom; "
        f"RSS {whole['percent_per_h']:+.2f} %/h (95 %: {whole['low']:+.2f} to {whole['high']:+.2f})"
    )


def _announced(figures: Figures) -> str:
    counted = {what: count for what, count in figures["counts"].items() if ": " in what}
    return ", ".join(f"{what} {count}" for what, count in counted.items()) or "none"


def _overload(figures: Figures) -> str:
    """With as many searches at a time."""
    return (
        f"{figures['capacity_per_s']:.0f} searches a second at most. "
        f"p99 {_ms(figures['accepted_s'], 'p99')} ms accepted, {_ms(figures['unloaded_s'], 'p99')} ms unloaded: "
        f"{figures['ratio_p99']:.1f} times (p50 {_ms(figures['accepted_s'], 'p50')} and "
        f"{_ms(figures['unloaded_s'], 'p50')} ms); {figures['refused_share']:.0%} refused, after "
        f"{_ms(figures['refused_s'], 'p99')} ms (p99)"
    )


def _refuses(figures: Figures, scans: str) -> bool:
    return _clean(figures) and figures[scans]["ratio_p99"] <= 2 and figures[scans]["refused_s"]["p99"] <= 0.1


def _ms(seconds: dict[str, float], key: str) -> str:
    return f"{1000 * seconds[key]:.0f}"


def _crashes(figures: Figures) -> str:
    lost = sum(count for what, count in figures["counts"].items() if what.startswith("commits without an answer"))
    return f"{_kills(figures)}; {lost} commits had no answer, and were looked up"


def _losses(figures: Figures) -> str:
    return f"{_kills(figures)}; {figures['counts']['disks lost']} disks lost"


def _actors(figures: Figures) -> str:
    counts, again = figures["counts"], figures["full_service_s"]
    return (
        f"{_kills(figures)}; {counts['actors killed']} actors killed, {counts['nodes lost']} nodes lost; full service "
        f"after {again['p50']:.1f} s (median; {again['max']:.1f} at most)"
    )


def _restarts(figures: Figures) -> str:
    return (
        f"{figures['runs']} restarts, down for {figures['down_s']['median']:.2f} s (median), "
        f"{figures['counts']['searches checked']:,} searches: {figures['failed_searches']} failed, "
        f"{figures['failures']} failures in all"
    )


def _flips(figures: Figures) -> str:
    runs, detected, no_effect = (
        sum(line[key] for line in figures["lines"]) for key in ("runs", "detected", "no_effect")
    )
    return f"{runs:,}: {detected:,} detected, {no_effect:,} without effect, {figures['failures']} failures"


def _fuzz(figures: Figures) -> str:
    lines = figures["lines"]
    rest = f"; not run at this length: {', '.join(missing)}" if (missing := _not_fuzzed(figures)) else ""
    return (
        f"{len(lines)} parsers, at least {min(line['runs'] for line in lines):,} inputs each: {figures['failures']} "
        f"failures, slowest {max(line['slowest_ms'] for line in lines):.0f} ms{rest}"
    )


def _not_fuzzed(figures: Figures) -> list[str]:
    """Parsers without a line."""
    there = {line["what"].removeprefix("fuzz ") for line in figures["lines"]}
    return [name for name in TARGETS if name not in there]


def _seal(figures: Figures) -> str:
    """As sent, by both sides; then SEAL's own format."""
    sent, files = figures["lines"][:2], figures["lines"][2]
    said = ", ".join(f"{what} {count:,}" for what, count in files["counts"].items())
    return (
        f"{sum(line['runs'] for line in sent):,} inputs: {sum(line['failures'] for line in sent)} failures. "
        f"{files['runs']:,} in SEAL's own format: {said}"
    )


TESTS = (
    Test(
        "`kill -9` of the server",
        "kill_server",
        "1,000 runs, 0 acknowledged rows lost, 0 phantom rows, fsck clean",
        _kills,
        lambda figures: _clean(figures) and figures["runs"] >= 1000,
        "Two clients write without a pause, and the server is killed a random share of an operation's time after an "
        "insert, upsert, delete or compaction began, also while data keys are replaced; every second folder is sealed. "
        "After each start a client that knows nothing reads every row, and its payload and scores are compared with "
        "the plaintext of what was acknowledged; what was not is there wholly or not at all.",
    ),
    Test(
        "`kill -9` of the client",
        "kill_client",
        "0 lost, resumable",
        _kills,
        _clean,
        "A client process is killed in the same way in its inserts, upserts, deletes, compactions and reseals. "
        "Another writer goes on, the next process resumes, and all rows are compared as above; none is there twice.",
    ),
    Test(
        "loss of the server's disk",
        "lose_server",
        "50 kills, half of them with the data folder: 0 acknowledged rows lost, 0 phantom rows",
        _losses,
        lambda figures: _clean(figures) and figures["runs"] >= 50,
        "The server is killed as above, with its catalogue in PostgreSQL and its segments on object storage (moto, "
        "which keeps them in its memory). Every second time its data folder is removed, and the next one starts on an "
        "empty one. All rows are compared as above.",
    ),
    Test(
        "crash of PostgreSQL, which has the catalogue",
        "crash_postgres",
        "50 restarts in the middle of commits, 0 lost, 0 twice",
        _crashes,
        lambda figures: _clean(figures) and figures["runs"] >= 50,
        "The server of the first test goes on, and the PostgreSQL of its catalogue is ended as by a crash while "
        "clients write, and started again. It waits 50 ms within each commit, so that many crashes come while one is "
        "under way. All rows are compared as above.",
    ),
    Test(
        "`kill -9` of a cluster's actors, loss of its nodes",
        "kill_actors",
        "100 rounds: 0 wrong answers, 0 acknowledged rows lost; time to full service reported",
        _actors,
        lambda figures: _clean(figures) and figures["runs"] >= 100,
        "The server of the first test stays, and its answers come from Ray (docs/cluster.md): two shards on two nodes, "
        "which are processes of one machine; half of the runs with one replica, half with two. While clients write, an "
        "actor is killed, or a node with all its actors, and another node comes. All rows and scores are compared as "
        "above.",
    ),
    Test(
        "soak: 16 clients",
        "soak",
        "30 minutes, 0 errors but the announced ones, 0 wrong results, RSS slope < 1 %/h",
        _slope,
        lambda figures: _clean(figures) and figures["seconds"] >= 1800 and figures["rss"]["whole"]["percent_per_h"] < 1,
        "Threads of four processes mix searches, inserts, upserts, deletes and compactions on three collections, and "
        "each result is compared, while all go on, with the few states that it may have seen: of each client's rows "
        "one of those between its last acknowledged and its last begun operation, of its own and of fixed rows the "
        "one. The slope is Theil and Sen's, on medians of twenty windows after the first third, the interval Sen's. "
        "The server has the environment of deploy/hesearch.service. Without it memory creeps up by 4 to 7 % an hour, "
        "and what creeps is what glibc keeps of freed memory for each of some thirty threads: `heaptrack`, attached to "
        "such a server, counted the same 1.0 MB of live allocations, give or take a tenth, through 440 seconds, 1,300 "
        "searches, 2,900 writes and 5.9 million allocations.",
    ),
    Test(
        "four times overload, one search at a time (`max_scans = 1`)",
        "overload",
        OVERLOAD_ASKED,
        lambda figures: _overload(figures["scans_1"]),
        lambda figures: _refuses(figures, "scans_1"),
        "Calls begin at random moments, whether or not earlier ones have ended, at four times the rate that callers "
        "get who ask one call after the other, as many as there are places; unloaded, busy and overloaded parts take "
        "turns. What asks shares the machine, two cores, with the server, which computes on one; its own delays are "
        "part of the figures. Two searches share passes over memory: the server does more of them, each takes longer, "
        "and fewer callers have to come again. That is the default; who wants the latency bound more than the "
        "throughput sets `max_scans = 1`.",
    ),
    Test(
        "four times overload, two at a time (the default)",
        "overload",
        OVERLOAD_ASKED,
        lambda figures: _overload(figures["scans_2"]),
        lambda figures: _refuses(figures, "scans_2"),
    ),
    Test(
        "rolling restart under load",
        "restarts",
        "50 restarts, 0 failed searches",
        _restarts,
        lambda figures: _clean(figures) and figures["runs"] >= 50 and not figures["failed_searches"],
        "Eight clients search and write as in the soak, with the retries that every client has, while the server is "
        "told to stop (SIGTERM), ends with 0 and is started again on the same port. A search or write that fails is a "
        "failure, and so is a wrong result.",
    ),
    Test(
        "power loss",
        "faults_power",
        "a cut at every I/O index: 0 lost, 0 corrupt",
        _kills,
        _clean,
        "A library between the server and the system records every write, sync and rename of a scripted workload; for "
        "every prefix of them, folders are made of what a disk may have kept: all, only what was synced, and seeded "
        "subsets of what was not. Each is opened, compared with what had been acknowledged, and written to.",
    ),
    Test(
        "ENOSPC, EIO, short write",
        "faults_errors",
        "at every I/O index: a typed error, store intact",
        _kills,
        _clean,
        "The same library makes one call of the workload fail, or write less, at every index in turn. The caller gets "
        "one of our errors, searches go on, and what was acknowledged is there afterwards.",
    ),
    Test(
        "`kill -9` at every I/O call",
        "faults_kill",
        "0 lost, 0 phantom",
        _kills,
        _clean,
        "The process is killed before every call of the workload, and in the middle of every write. The folder that "
        "is left is opened and compared as above.",
    ),
    Test(
        "fuzzing of every parser",
        "fuzz",
        "≥ 1,000,000 inputs each: no crash, no hang over 100 ms, memory ≤ 2 × the declared limit",
        _fuzz,
        lambda figures: (
            not (figures["failures"] or _not_fuzzed(figures))
            and min(line["runs"] for line in figures["lines"]) >= 1_000_000
        ),
        "Right inputs are changed: bits, lengths, fields, parts of others, and checksums are often made right again, "
        "so that what lies behind them is reached. Anything but one of our errors is a failure.",
    ),
    Test(
        "bytes of strangers for SEAL (engine `tenseal`)",
        "seal",
        "≥ 50,000 as they are sent: no process ends or hangs, nobody else's answer changes",
        _seal,
        lambda figures: not figures["failures"] and sum(line["runs"] for line in figures["lines"][:2]) >= 50_000,
        "Queries and blocks go through the server's checks, one in four past them, to its real workers, and answers "
        "through a client's. Half of every job is sound, and its answer must be the one that it gets alone. SEAL's own "
        "format, which nobody can send, is given to SEAL's parser beside that, to know what it would do.",
    ),
    Test(
        "random bit flips in every kind of file",
        "bitflips",
        "10,000: 100 % detected",
        _flips,
        lambda figures: not figures["failures"] and sum(line["runs"] for line in figures["lines"]) >= 10_000,
        "One bit of a file is turned. Its reader, the server that opens the folder or fsck must say so; or all that "
        "can be read is as before, as for bytes that SQLite does not use and for spaces in a key file: those have no "
        "effect, and are counted apart. Anything else is a failure.",
    ),
    Test(
        "a server that lies",
        "malicious",
        "≥ 20,000 lies, each refused or without effect, none decrypted",
        lambda figures: (
            f"{figures['runs']:,} of {figures['kinds']} kinds: {figures['detected']:,} refused, "
            f"{figures['harmless']:,} without effect, {figures['failures']} failures"
        ),
        lambda figures: _clean(figures) and figures["runs"] >= 20_000,
        "A proxy between clients and a server of ours changes what comes back, in a way, at a place and by an amount "
        "that follow from the seed ([malicious.md](malicious.md)). Right is an error that was expected of that kind of "
        "lie, or results that are those of the honest server, bit for bit.",
    ),
)


def load(run: Run, test: Test) -> Figures:
    """A test that writes several lines is one: its failures are added up. Raises FileNotFoundError."""
    figures: Any = run.load(test.file)
    if isinstance(figures, list):
        return {"lines": figures, "failures": sum(line["failures"] for line in figures)}
    assert isinstance(figures, dict)
    return figures


def defects() -> list[dict[str, str]]:
    """`what` was wrong, the `test` that guards it, as FILE::FUNCTION."""
    listed: list[dict[str, str]] = tomllib.loads(DEFECTS.read_text())["defect"]
    return listed


def machines(run: Run) -> list[str]:
    found = [figures["machine"] for figures in run.everything().values() if "machine" in figures]
    said = {f"{one['cpu']}, {one['cores']} cores, {one['memory_gb']} GB, {one['system']}" for one in found}
    return sorted(said)


def section(run: Run, test: Test) -> list[str]:
    lines = ["", f"### {test.title[0].upper()}{test.title[1:]}", "", test.how]
    try:
        figures = load(run, test)
    except FileNotFoundError:
        return lines
    if test.file == "soak":
        lines += ["", f"Announced errors: {_announced(figures)}."]
    commands = dict.fromkeys(line["command"] for line in figures.get("lines", [figures]))  # one may write many lines
    return [*lines, "", "```sh", *commands, "```"]


def render(folder: Path) -> str:
    """Markdown."""
    run, rows = Run(folder), []
    for test in TESTS:
        try:
            figures = load(run, test)
        except FileNotFoundError:
            rows.append([test.title, test.asked, "not run", "–"])
        else:
            rows.append([test.title, test.asked, test.measured(figures), "yes" if test.met(figures) else "no"])
    lines = [
        "# Reliability",
        "",
        "What is done to the server and its clients, and what came of it. Written by `make torture` from the figures "
        "of that run (hours); `make torture TORTURE=short` takes some minutes. Part of `make test` are 60 kills of the "
        "server, 60 of a client, 8 losses of a disk, 8 crashes of PostgreSQL, 3 kills in a cluster, 3 minutes of soak, "
        "4 restarts and 4 seconds of load. Operations, moments and faults follow from the seed in each command; the "
        "machine's scheduling does not, so a failure that depends on it may take several tries to come back.",
        "",
        *(f"{machine}." for machine in machines(run)),
        *table(["", "asked", "measured", "met"], rows),
        "## How it is tested",
        *(line for test in TESTS if test.how for line in section(run, test)),
        "",
        "## Defects that this found",
        "",
        "Each is repaired, and has a test that fails without the repair.",
        *table(["what was wrong", "test"], [[one["what"], f"`{one['test']}`"] for one in defects()]),
    ]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.report", description="The report of `make torture`.")
    parser.add_argument("folder", type=Path, nargs="?", default=FIGURES, help="the JSON files (default: %(default)s)")
    parser.add_argument("output", type=Path, nargs="?", default=COMMITTED, help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.output.write_text(render(arguments.folder))
    run, failed = Run(arguments.folder), list[str]()
    for test in TESTS:
        if (arguments.folder / f"{test.file}.json").exists() and load(run, test)["failures"]:
            failed.append(test.file)
    failed = list(dict.fromkeys(failed))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())

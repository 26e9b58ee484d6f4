"""Crashes PostgreSQL, which has the catalogue, while clients write, starts it again, and looks for every row.

    python -m tests.torture.crash_postgres --seed 1 --runs 50

Clients, operations and moments are those of tests.torture.kill_server; the server goes on. PostgreSQL is stopped as by
a crash (`pg_ctl stop -m immediate`: no buffer is written, it recovers from its log) and waits 50 ms within each commit,
so that many crashes come while one is under way. What the server then looked up is counted: commits that PostgreSQL
had made, and those that it had not.

JSON keys beside those of tests.torture.tally: `counts` as in tests.torture.kill_server (`fsck` after each crash, while
the server goes on), and `commits without an answer: made`, `… not made`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from he_server.operate.fsck_remote import check_remote
from tests.postgres_fixture import PostgresServer
from tests.torture.kill_server import BATCH, Scene
from tests.torture.rows import small_segments
from tests.torture.tally import Tally, main

_COMMIT_US = "50000"


class PostgresScene(Scene):
    """One data folder, its server, and the PostgreSQL that has its catalogue."""

    def __init__(self, seed: int, folder: Path, tally: Tally, postgres: PostgresServer, *, sealed: bool) -> None:
        self._url = postgres.new_database()
        super().__init__(seed, folder, tally, "--catalogue", self._url, sealed=sealed)
        self._postgres = postgres

    def crash(self) -> None:
        self._postgres.stop("immediate")

    def revive(self) -> None:
        self._postgres.start()
        self._check()

    def fsck(self) -> None:
        """PostgreSQL is away."""

    def _check(self) -> None:
        """While the server goes on."""
        self.checked(check_remote(self._server.data, self._url, kek=self.kek))

    def close(self) -> None:
        super().close()
        self._check()
        log = self._server.log.read_text()
        for outcome in ("made", "not made"):
            self.tally.counts[f"commits without an answer: {outcome}"] += log.count(f"during a commit: {outcome}")


def run(seed: int, runs: float, tally: Tally) -> None:
    small_segments()
    with (
        PostgresServer(commit_delay=_COMMIT_US, commit_siblings="0") as postgres,
        tempfile.TemporaryDirectory(prefix="hesearch-torture-") as name,
    ):
        for batch, first in enumerate(range(0, int(runs), BATCH)):
            sealed = bool((seed + batch) % 2)
            scene = PostgresScene(seed + batch, Path(name) / str(batch), tally, postgres, sealed=sealed)
            scene.open()
            for number in range(first, min(first + BATCH, int(runs))):
                scene.run(number)
            scene.close()


if __name__ == "__main__":
    raise SystemExit(main("tests.torture.crash_postgres", "crashes of PostgreSQL while clients write", "runs", 50, run))

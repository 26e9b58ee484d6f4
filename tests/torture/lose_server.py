"""Kills the server and takes its disk away while clients write, and looks for every row on a new machine.

    python -m tests.torture.lose_server --seed 1 --runs 50

Clients, operations and moments are those of tests.torture.kill_server. The catalogue is in PostgreSQL and the segments
are on object storage (moto, in a process of its own), so whatever was acknowledged is there for a server that starts on
an empty data folder. In half of the runs the folder stays, and its copies are used again.

JSON keys: those of tests.torture.kill_server, and `counts`: `disks lost`; `fsck` is of rows and objects.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from he_server.operate.fsck_remote import check_remote
from tests.postgres_fixture import PostgresServer
from tests.s3_fixture import ENVIRONMENT, S3Server
from tests.torture.kill_server import BATCH, Scene
from tests.torture.rows import small_segments
from tests.torture.tally import Tally, main


class LossyScene(Scene):
    """One server, whose machine may be lost."""

    def __init__(self, seed: int, folder: Path, tally: Tally, where: dict[str, str], *, sealed: bool) -> None:
        options = [text for name, url in where.items() for text in (f"--{name}", url)]
        super().__init__(seed, folder, tally, *options, sealed=sealed)
        self._where = where

    def crash(self) -> None:
        super().crash()
        if self._rng.random() < 0.5:
            shutil.rmtree(self._server.data)
            self.tally.counts["disks lost"] += 1

    def fsck(self) -> None:
        self.checked(check_remote(self._server.data, **self._where, kek=self.kek))


def run(seed: int, runs: float, tally: Tally) -> None:
    small_segments()
    os.environ.update(ENVIRONMENT)  # for the servers
    with (
        PostgresServer() as postgres,
        S3Server() as s3,
        tempfile.TemporaryDirectory(prefix="hesearch-torture-") as name,
    ):
        for batch, first in enumerate(range(0, int(runs), BATCH)):
            where = {"catalogue": postgres.new_database(), "segments": s3.new_bucket()}
            sealed = bool((seed + batch) % 2)
            scene = LossyScene(seed + batch, Path(name) / str(batch), tally, where, sealed=sealed)
            scene.open()
            for number in range(first, min(first + BATCH, int(runs))):
                scene.run(number)
            scene.close()


if __name__ == "__main__":
    raise SystemExit(main("tests.torture.lose_server", "kill -9 of the server, and loss of its disk", "runs", 50, run))

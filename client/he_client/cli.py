"""`hesearch`: the command line. One subcommand a verb; `--json` for machines; passphrases never on the line."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from he_client.commands import advise as advise_command
from he_client.commands import archive as archive_commands
from he_client.commands import common as commands
from he_client.commands import dp as dp_commands
from he_client.commands import health as health_command
from he_client.commands import key as key_commands
from he_client.commands import maintenance as maintenance_commands
from he_client.commands import plan as plan_command
from he_client.commands import protect as protect_commands
from he_client.released import ScoreReleaseWarning
from he_engine.errors import (
    AlreadyExists,
    BudgetExceeded,
    Conflict,
    DamagedDataError,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    MissingExtra,
    NotFound,
    TamperedAnswerError,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)

EXIT_CODES: tuple[tuple[type[HesearchError], int], ...] = (
    (MissingExtra, 7),
    (InvalidInput, 2),
    (FormatVersionError, 2),
    (NotFound, 3),
    (AlreadyExists, 4),
    (Conflict, 4),
    (WrongKeyError, 5),
    (DamagedDataError, 9),
    (TamperedAnswerError, 6),
    (TamperedDataError, 6),
    (Unavailable, 8),
    (BudgetExceeded, 10),
)

EPILOG = """\
exit codes:
  0  done                             5  wrong key or passphrase
  1  another error                    6  tampered answer or data: do not trust this server
  2  bad arguments, input or format   7  an optional package is missing
  3  no such collection or file       8  server unavailable
  4  exists, or changed by others     9  damaged: the server says so of what it stores; or an archive
                                   10  more than a privacy budget allows; nothing was released
  (serve: 0 after SIGTERM or SIGINT, 1 when it could not start)

examples:
  hesearch serve --data ./data --listen 127.0.0.1:50051 --insecure
  hesearch keygen notes.key
  hesearch create notes --key notes.key --dim 384 --server 127.0.0.1:50051 --insecure
  hesearch insert notes vectors.npy --ids ids.txt --key notes.key --server 127.0.0.1:50051 --insecure
  hesearch search notes query.npy --key notes.key --server 127.0.0.1:50051 --insecure
  hesearch plan --rows 1000000 --dim 768 --link-mbps 100
  hesearch dp release vectors.npy noisy.npy --epsilon 1 --delta 1e-7 --budget patients.budget
  hesearch advise --profile regulated --write ./server
  hesearch demo --query "sudden loss of vision in one eye"

The passphrase of a key file is asked for, or read from the file named by --passphrase-file.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hesearch",
        description="Similarity search over fully encrypted embeddings.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=commands.version())
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_serve(subparsers)
    health_command.add_health(subparsers)
    commands.add_keygen(subparsers)
    key_commands.add_key_commands(subparsers)
    commands.add_create(subparsers)
    commands.add_insert(subparsers)
    maintenance_commands.add_upsert(subparsers)
    commands.add_search(subparsers)
    commands.add_delete(subparsers)
    maintenance_commands.add_compact(subparsers)
    archive_commands.add_export(subparsers)
    archive_commands.add_import(subparsers)
    archive_commands.add_reseal(subparsers)
    archive_commands.add_repair(subparsers)
    commands.add_info(subparsers)
    commands.add_drop(subparsers)
    commands.add_trust(subparsers)
    plan_command.add_plan(subparsers)
    protect_commands.add_protect_commands(subparsers)
    dp_commands.add_dp(subparsers)
    advise_command.add_advise(subparsers)
    commands.add_demo(subparsers)
    return parser


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Ours look like errors, and are shown whatever Python's filters are."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ScoreReleaseWarning)
        plain = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
            if category is ScoreReleaseWarning:
                print(f"hesearch: {message}", file=sys.stderr)
            else:
                plain(message, category, *where, **how)

        warnings.showwarning = show
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parsed = build_parser().parse_args(arguments)
    try:
        with _warnings_as_lines():
            return int(parsed.run(parsed))
    except HesearchError as error:
        print(f"hesearch: {error}", file=sys.stderr)
        return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())

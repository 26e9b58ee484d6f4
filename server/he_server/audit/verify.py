"""An audit log checked from its first line to its last, without any key, against its head and exported ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from he_engine.errors import HesearchError, NotFound, TamperedDataError
from he_server.audit.heads import HEAD, Head, read_head
from he_server.audit.reading import LOG, Reader, log_id_of


@dataclass(slots=True)
class Report:
    """What `verify` found. All texts are for the operator and the auditor."""

    problem: str = ""  #: what is not as it was written; empty: nothing
    sequence: int | None = None  #: of the first line that is wrong
    note: str = ""  #: what may be, and should be known
    lines: int = 0  #: that follow from each other, from the first on
    covered: int = -1  #: the last line that a head covers
    proven: int = -1  #: the last line that an exported head covers


def verify(folder: Path, exported: Sequence[Head] = ()) -> Report:
    """Every line continues the one before; those that heads cover are the ones that were signed.

    Raises NotFound (no log), FormatVersionError (a newer version's), Unavailable.
    """
    if not (folder / LOG).is_file():
        raise NotFound("audit log: there is none")
    report, heads, reader = Report(), list(exported), Reader(folder / LOG)
    try:  # before the lines: a server that writes meanwhile is ahead of it
        heads.append(read_head(folder / HEAD))
    except HesearchError as error:
        report.problem = f"the newest head: {error}"
    for line in reader:
        try:
            if line.sequence == 0 and {head.log_id for head in heads} - {log_id_of(line)}:
                raise TamperedDataError("line 0: it begins another log than the heads are of")
            for head in (head for head in heads if head.sequence == line.sequence):
                if head.hash != line.hash:
                    raise TamperedDataError(
                        f"line {line.sequence}: not the one that was signed: it, or one after line {report.covered}, "
                        "was changed, and the chain from there on made anew"
                    )
                report.covered = line.sequence
                report.proven = line.sequence if head in exported else report.proven
        except TamperedDataError as error:
            report.problem, report.sequence = str(error), line.sequence
            return report
        report.lines = reader.next
    missing = max((head.sequence for head in heads), default=-1)
    if missing >= reader.next or (reader.problem and not reader.torn()):
        report.sequence = reader.next
        report.problem = reader.problem or f"line {reader.next} is missing: a head covers lines up to {missing}"
    elif reader.problem:
        report.note = f"{reader.problem}; a server writes it just now, or a crash left it"
    return report

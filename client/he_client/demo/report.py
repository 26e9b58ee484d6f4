"""What the demo prints: each step, what it does and why it is private. At most 100 columns."""

from __future__ import annotations

import shlex
import statistics
import sys
import textwrap
from collections.abc import Sequence

from he_client.demo.record import RECALL_K, DemoRecord, QueryRecord

WIDTH = 100
STEPS = 6


def say(text: str = "", indent: str = "") -> None:
    """One paragraph on stdout, wrapped."""
    print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent))
    sys.stdout.flush()


def step(number: int, title: str, why: str) -> None:
    """Announces a step before it runs: what happens, and why nobody else can read it."""
    print(f"\n[{number}/{STEPS}] {title}")
    say(why, "      ")


def done(text: str) -> None:
    """The outcome of a step."""
    say(f"-> {text}", "      ")


def command(words: Sequence[str]) -> None:
    """A command line, on a line of its own however long, so that it can be copied."""
    print("      $ " + shlex.join(words), flush=True)


def question(number: int, record: QueryRecord, wanted: int) -> None:
    """The hits of one question, and what the server saw of it. wanted: 10, or fewer where there are fewer rows."""
    print(f'\nQuestion {number}: "{clip(record.text, WIDTH - 14)}"')
    print("       score  plaintext  diagnosis")
    for rank, hit in enumerate(record.hits, 1):
        start = f"  {rank:2}  {hit.score:.4f}     {hit.plaintext_score:.4f}  {hit.code:<9}"
        print(start + clip(hit.title, WIDTH - len(start)))
    heads = [spaced(record.query_head_hex), spaced(record.answer_head_hex)]
    print("  What the server saw of it:")
    print(f"      question {size(record.query_bytes):>8}   {heads[0]} ...")
    print(f"      answer   {size(record.answer_bytes):>8}   {heads[1]} ...")
    client_s = record.encrypt_s + record.recover_s
    say(
        f"{seconds(record.server_s)} at the server and {seconds(client_s)} here; in plaintext "
        f"{seconds(record.plaintext_s)}. Of its best {wanted} hits, {round(record.recall_at_10 * wanted)} are among "
        f"the plaintext search's best {wanted}.",
        "  ",
    )


def table(record: DemoRecord) -> None:
    """Encrypted beside plaintext."""
    queries = record.queries
    server = statistics.median(q.server_s for q in queries)
    client = statistics.median(q.encrypt_s + q.recover_s for q in queries)
    plaintext = statistics.median(q.plaintext_s for q in queries)
    sent = queries[0].query_bytes
    received = queries[0].answer_bytes
    index, plain_index = record.insert.index_bytes, record.insert.plaintext_index_bytes
    print(f"\nThe same search twice: {record.rows:,} rows x {record.dim}, {record.threads} threads\n")
    _line("", f"encrypted ({record.profile})", "plaintext (FAISS)", "ratio")
    _line("one question, server", seconds(server), seconds(plaintext), f"{server / plaintext:.1f}")
    _line("one question, client", seconds(client), "-")
    _line("one question, sent", size(sent), size(4 * record.dim))
    _line("one question, received", size(received), size(12 * min(RECALL_K, record.rows)))
    _line("index on the server", size(index), size(plain_index), f"{index / plain_index:.1f}")
    _line("the server can read", "nothing", "everything")
    sample = record.sample
    if sample is not None:
        _line("recall@10", f"{sample.recall_at_10:.4f}", f"{sample.plaintext_recall_at_10:.4f}")
        _line("right code first (hit@1)", f"{sample.hit_at_1:.1%}", f"{sample.plaintext_hit_at_1:.1%}")
        _line("right code in ten (hit@10)", f"{sample.hit_at_10:.1%}", f"{sample.plaintext_hit_at_10:.1%}")
        _line(f"all {sample.queries:,} names", seconds(sample.encrypted_s), seconds(sample.plaintext_s))
    print()
    say(
        "Times of one question are medians over the questions, each asked five times. The encrypted server time "
        "contains the connection; the plaintext search is a call in this process, on one thread or on all, "
        "whichever is faster. Recall counts ties: a row as close as the tenth best is a hit. What the server does "
        "learn: sizes, times, and how many questions there are."
    )


def closing(record: DemoRecord) -> None:
    if record.profile == "exact":
        print()
        say(
            "Why the scores differ from the plaintext's in the fourth place: exact means exactly the inner product of "
            "vectors rounded to integers. --profile precise agrees to eight places."
        )
    else:
        print()
        say(
            f"Keep the scores above to yourself: the profile {record.profile} gives approximate scores, which are "
            "key material. The default profile, exact, gives scores that may be shown to anyone."
        )
    print(f"\nDone in {record.total_s:.0f} s. The server is stopped, its folder deleted, the key forgotten.")


def _line(name: str, encrypted: str, plaintext: str, ratio: str = "") -> None:
    print(f"  {name:<30}{encrypted:>20}{plaintext:>22}{ratio:>10}".rstrip())


def clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def spaced(digits: str) -> str:
    """Hexadecimal in bytes."""
    return bytes.fromhex(digits).hex(" ")


def seconds(value: float) -> str:
    """A time with its unit, three digits."""
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def size(count: int) -> str:
    """A number of bytes with its unit, three digits (1 KB = 1000 B)."""
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"

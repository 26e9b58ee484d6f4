"""`hesearch plan`: what a collection will cost at every stride, and which one to take."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace

from he_client.commands.argument_types import add_threads, not_negative, positive, whole
from he_client.commands.common import Subparsers, add_command, report
from he_client.plan import CALL_S, MARGIN, QUERIES, Link, Plan, Sizes, candidates, choose, predict
from he_engine.params import Parameters, Profile

_LIMITS = {
    "server": "the server's memory bandwidth",
    "link": "the link",
    "client": "the client, which encrypts, verifies and decrypts",
}


def add_plan(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "plan", _plan, "choose a stride: memory, disk, wire and latency of a collection, beforehand",
        "--rows 1000000 --dim 768 --link-mbps 100\n"
        "  hesearch plan --rows 200000 --dim 384 --link-mbps 1000 --profile compact --server-gb-s 20",
    )  # fmt: skip
    parser.add_argument("--rows", type=whole, required=True, metavar="N", help="rows of the collection")
    parser.add_argument("--dim", type=whole, required=True, metavar="D", help="vector dimension")
    parser.add_argument(
        "--link-mbps", type=positive, required=True, metavar="L", help="between client and server, Mbit/s"
    )
    parser.add_argument("--rtt-ms", type=not_negative, default=1.0, metavar="R", help="round trip (default 1)")
    parser.add_argument("--profile", choices=[p.value for p in Profile], default=Profile.EXACT.value)
    parser.add_argument(
        "--queries", type=whole, default=QUERIES, metavar="Q",
        help=f"that a client asks for each time it downloads the hints (default {QUERIES})",
    )  # fmt: skip
    server = parser.add_mutually_exclusive_group()
    add_threads(server)
    server.add_argument(
        "--server-gb-s", type=positive, metavar="G", help="what another server reads of an index, GB/s, all threads"
    )


def _plan(arguments: argparse.Namespace) -> int:
    from he_client.calibrate import calibrate  # a server's kernel, which no other command needs

    profile = Profile(arguments.profile)
    sizes = [Sizes(p, arguments.rows) for p in candidates(profile, arguments.dim)]
    link = Link.over(arguments.link_mbps * 1e6 / 8, arguments.rtt_ms / 1e3)
    print(f"measuring this machine at {len(sizes)} strides, some seconds …", file=sys.stderr)
    measured = calibrate(sizes, arguments.threads)
    if arguments.server_gb_s is not None:
        measured = [replace(rates, server_bytes_per_s=arguments.server_gb_s * 1e9) for rates in measured]
    plans = [predict(s.parameters, s.rows, r, link, arguments.queries) for s, r in zip(sizes, measured, strict=True)]
    best = choose(plans)
    given = {k: v for k, v in vars(arguments).items() if k not in ("run", "json", "command")}
    strides = [{**asdict(plan), "rates": asdict(rates)} for plan, rates in zip(plans, measured, strict=True)]
    fields = {"arguments": given, "chosen": best.stride, "strides": strides}
    return report(arguments, fields, _text(arguments, plans, best))


def _text(arguments: argparse.Namespace, plans: list[Plan], best: Plan) -> str:
    parameters = Parameters.choose(arguments.profile, arguments.dim, best.stride)
    server = (
        f"{arguments.threads} threads of this machine answer"
        if arguments.server_gb_s is None
        else f"the server reads {arguments.server_gb_s:g} GB/s"
    )
    lines = [
        f"{arguments.rows:,} rows × {arguments.dim}, {arguments.profile}; {arguments.link_mbps:g} Mbit/s, round trip "
        f"{arguments.rtt_ms:g} ms; {server}, and all its cores are the client",
        "",
        "   stride       sent   received      cache   client memory   first open    latency   limit",
    ]
    for plan in plans:
        lines.append(
            f" {'→' if plan is best else ' '} {plan.stride:>6} {size(plan.sent_bytes):>10} "
            f"{size(plan.received_bytes):>10} {size(plan.client_cache_bytes):>10} "
            f"{size(plan.client_memory_bytes):>15} {duration(plan.open_s):>12} {duration(plan.latency_s):>10}   "
            f"{plan.limit}"
        )
    lines += [
        "",
        f"stride {best.stride}: the least client memory within {MARGIN:.0%} of the lowest latency (with 1/"
        f"{arguments.queries:,} of a first open)",
        f"  server      {size(best.server_memory_bytes)} of memory for the index, {size(best.server_disk_bytes)} of "
        f"disk, {best.segments} segments",
        f"  upload      {size(best.upload_bytes)} once: {duration(best.upload_s)} (encryption "
        f"{duration(best.upload_encrypt_s)}, link {duration(best.upload_send_s)})",
        f"  first open  {size(best.open_bytes)}, {duration(best.open_s)}; the client keeps them, on disk where "
        "`cache` names a folder",
        f"  client      {size(best.client_memory_bytes)} of memory",
        f"  one query   {size(best.sent_bytes)} sent, {size(best.received_bytes)} received, "
        f"{duration(best.latency_s)}: encrypt {duration(best.encrypt_s)}, send {duration(best.send_s)}, call "
        f"{duration(arguments.rtt_ms / 1e3 + CALL_S)}, then overlapping",
        f"              server {duration(best.server_s)}, receive {duration(best.receive_s)}, recover "
        f"{duration(best.recover_s)}",
        f"  its limit   {_LIMITS[best.limit]}",
        f"  precision   a score is off by {parameters.score_error_std:.1e} (standard deviation, unit vectors)",
    ]
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes in decimal units, three digits."""
    value, units = float(count), iter(("B", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds / 60:.0f} min"

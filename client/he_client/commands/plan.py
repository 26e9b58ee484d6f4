"""`hesearch plan`: what a collection will cost at every stride, and which one to take; or on a cluster."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from functools import partial

from he_client.commands import plan_cluster
from he_client.commands.argument_types import add_threads, not_negative, positive, whole
from he_client.commands.common import Subparsers, add_command, report
from he_client.commands.units import duration, size
from he_client.plan import CALL_S, MARGIN, QUERIES, Link, Plan, Sizes, candidates, choose, predict
from he_engine.params import Parameters, Profile

_LIMITS = {
    "server": "the server's memory bandwidth",
    "link": "the link",
    "client": "the client, which encrypts, verifies and decrypts",
}
_NAMES = ("rows", "dim", "link_mbps", "rtt_ms", "profile", "queries", "threads", "server_gb_s")


def add_plan(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "plan", _stride,
        "what a collection will cost, beforehand: the stride to choose, or the nodes of a cluster",
        "--rows 1000000 --dim 768 --link-mbps 100\n"
        "  hesearch plan --rows 200000 --dim 384 --link-mbps 1000 --profile compact --server-gb-s 20\n"
        "  hesearch plan --cluster --rows 1000000000 --dim 768 --profile compact --simulate 500",
    )  # fmt: skip
    parser.add_argument("--rows", type=whole, required=True, metavar="N", help="rows of the collection")
    parser.add_argument("--dim", type=whole, required=True, metavar="D", help="vector dimension")
    parser.add_argument(
        "--link-mbps", type=positive, metavar="L",
        help=f"between client and server, Mbit/s; with --cluster {plan_cluster.LINK_MBPS:g} if not given",
    )  # fmt: skip
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
    plan_cluster.add_cluster(parser)
    parser.set_defaults(run=partial(_plan, parser))


def _plan(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if wrong := plan_cluster.misplaced(parser, arguments):
        parser.error(wrong)
    if arguments.cluster:
        return plan_cluster.run(arguments)
    if arguments.link_mbps is None:
        parser.error("--link-mbps: got none, expected the link between client and server, in Mbit/s")
    return _stride(arguments)


def _stride(arguments: argparse.Namespace) -> int:
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
    given = {name: getattr(arguments, name) for name in _NAMES}
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

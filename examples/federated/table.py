"""The README's table, out of the figures of a run."""

from __future__ import annotations

from typing import Any

START, END = "<!-- figures: written by examples.federated.run -->", "<!-- end of figures -->"
NAMES = {
    "centralised": "all records in one place",
    "local": "each hospital alone",
    "plain": "FedAvg, in the clear",
    "encrypted": "FedAvg, encrypted",
}


def markdown(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['records']:,} records of {figures['classes']} chapters, a fifth of them to test on; "
        f"{figures['hospitals']} hospitals, Dirichlet α = {figures['alpha']}; {figures['rounds']} rounds; "
        f"{figures['parameters']:,} numbers, {figures['ciphertexts']} ciphertexts an update; means and 95 % intervals "
        f"over {figures['seeds']} seeds. Bytes are of one hospital in one round, seconds of {figures['cores']} cores.",
        "",
        "| | accuracy | bytes up | bytes down | seconds a round, all hospitals |",
        "|---|---|---|---|---|",
    ]
    for way, found in figures["ways"].items():
        name = NAMES.get(way) or f"encrypted, and ε = {way.split()[1]}, δ = {figures['delta']:g} for each record"
        up, down = (f"{found[side]:,.0f}" if side in found else "" for side in ("bytes_up", "bytes_down"))
        interval = f"{100 * found['accuracy']:.1f} ± {100 * found['accuracy_half_interval']:.1f} %"
        lines.append(f"| {name} | {interval} | {up} | {down} | {found['seconds_a_round']:.2f} |")
    apart = max(abs(one) for one in figures["encrypted_less_plain"])
    lines += ["", f"Encrypted and in the clear differ by at most {100 * apart:.2f} points in any seed."]
    if separate := figures.get("processes"):
        lines[-1] += (
            f" As processes of their own over TLS, seed 0 ends at {100 * separate['accuracy']:.1f} %"
            f"{', as in one process' if separate['same_as_in_one_process'] else ''}, after {separate['seconds']:.0f} s;"
            f" modules that can decrypt in the aggregator: {len(separate['aggregator_can_decrypt'])}."
        )
    return "\n".join(lines)


def inserted(readme: str, figures: dict[str, Any]) -> str:
    """readme with the table between its markers."""
    before, _, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError("README.md: the markers of the table are missing")
    return f"{before}{START}\n{markdown(figures)}\n{END}{after}"

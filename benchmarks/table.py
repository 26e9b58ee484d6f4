"""The README's table of figures, from the JSON files that the benchmarks wrote.

    python -m benchmarks.table docs/figures

`make bench` measures, and prints it at its end.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from benchmarks.markdown import Run, number
from benchmarks.sections import PROFILES


def render(folder: Path) -> str:
    """Markdown. Raises FileNotFoundError where a file is missing."""
    run = Run(folder)
    overhead = [run.load(f"overhead_{p}") for p in PROFILES]
    icd = [run.load(f"icd_{p}") for p in PROFILES]
    machine, arguments = overhead[0]["machine"], overhead[0]["arguments"]

    def plain(name: str) -> str:
        return f"{statistics.median(o['times_s'][name]['median'] for o in overhead) * 1e3:.1f}"

    client = [o["client_query_s"] + o["client_recover_s"] for o in overhead]
    best = [o["times_s"]["server"]["median"] / o["ratio_server_vs_best_plaintext"] for o in overhead]
    whole = [(o["times_s"]["server"]["median"] + c) / b for o, c, b in zip(overhead, client, best, strict=True)]

    def row(title: str, peer: str, values: list[str]) -> str:
        return f"| {title} | {peer} | {' | '.join(values)} |"

    identical = ["yes" if i["integer_identical"] else "–" for i in icd]
    lines = [
        "| | plaintext | `compact` | `exact` (default) | `precise` |",
        "|---|---|---|---|---|",
        row(
            "server, one query, one thread, ms",
            f"{plain('faiss')} FAISS, {plain('numpy')} NumPy",
            [f"{o['times_s']['server']['median'] * 1e3:.1f}" for o in overhead],
        ),
        row("… ÷ FAISS `IndexFlatIP`, same run", "1", [f"{o['ratio_server_vs_faiss']:.2f}" for o in overhead]),
        row(
            "… ÷ the faster of FAISS and NumPy, same run",
            "1",
            [f"{o['ratio_server_vs_best_plaintext']:.2f}" for o in overhead],
        ),
        row(
            "client, one query (encrypt, verify, decrypt), ms",
            "–",
            [f"{c * 1e3:.1f}" for c in client],
        ),
        row("server and client ÷ the faster of the two", "1", [f"{w:.2f}" for w in whole]),
        row("recall@10 on ICD-10-CM", "1", [f"{i['recall_at_10']:.4f}" for i in icd]),
        row("error of a score, standard deviation", "–", [f"{i['score_error_std']:.1e}" for i in icd]),
        row(f"bit-identical to the integer search ({icd[1]['scores_compared']:,} scores)", "–", identical),
        row("index, bytes a coordinate", "4", [f"{o['index_bytes_per_coordinate']:.2f}" for o in overhead]),
        row("query sent, KB", f"{4 * arguments['dim'] / 1e3:.0f}", [f"{o['query_bytes'] / 1e3:.0f}" for o in overhead]),
        row("answer received, bytes a row", "–", [f"{o['answer_bytes_per_row']:.2f}" for o in overhead]),
        row(
            "client keeps hint and fingerprint, bytes a row",
            "–",
            [f"{o['client_cache_bytes_per_row']:.0f}" for o in overhead],
        ),
        row("encryption, rows a second a core", "–", [f"{o['encrypt_rows_per_s']:,.0f}" for o in overhead]),
        row(
            "TenSEAL, one dot product a row (extrapolated), times slower",
            "–",
            [number(o["ratio_tenseal_vs_hint"], ",.0f") for o in overhead],
        ),
        row(
            "TenSEAL at its best (dimension-packed), times slower",
            "–",
            [number(o["ratio_tenseal_packed_vs_hint"], ",.0f") for o in overhead],
        ),
        "",
        f"{arguments['rows']:,} × {arguments['dim']} unit vectors, medians of {arguments['rounds']} alternating runs, "
        f"{machine['cpu']} ({machine['cores']} cores, {machine['kernel_targets'][0]}), where one core reads memory at "
        f"{overhead[0]['read_bandwidth_gb_s']:.0f} GB/s; ICD-10-CM: {icd[0]['rows']:,} × {icd[0]['dim']}, "
        f"{icd[0]['queries']:,} queries.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures")))

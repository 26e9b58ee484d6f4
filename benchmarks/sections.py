"""The tables of docs/benchmarks.md: figures of one run → Markdown, a function for each section.

A section raises FileNotFoundError where the run lacks its figures, and leaves out rows that were not measured.
"""

from __future__ import annotations

from benchmarks.markdown import Figures, Run, commands, ms, number, picture, table

PROFILES = ("compact", "exact", "precise")
#: Names of files of benchmarks.overhead after `overhead_PROFILE`.
RUNS = ("", "_100k_2t", "_1m_1t", "_1m_2t", "_avx2")


def server(run: Run) -> list[str]:
    runs = run.found(*(f"overhead_{profile}{name}" for name in RUNS for profile in PROFILES))

    def row(f: Figures) -> list[str]:
        a, times = f["arguments"], f["times_s"]
        peers = [ms(times.get(name, {}).get("median")) for name in ("faiss", "numpy", "faiss_all")]
        kernels = a.get("target") or f["machine"]["kernel_targets"][0]
        return [
            f"{a['rows']:,} × {a['dim']}, {a['threads']} thread{'s'[: a['threads'] - 1]}, {kernels}, `{a['profile']}`",
            ms(times["server"]["median"]),
            *peers,
            number(f["ratio_server_vs_faiss"]),
            number(f["ratio_server_vs_best_plaintext"]),
            number(f["server_gb_s"], ".1f"),
            number(f.get("ratio_server_vs_plain_read")),
        ]

    header = [
        "one query, medians", "encrypted, ms", "FAISS, ms", "NumPy, ms", "FAISS, all cores, ms",
        "÷ FAISS", "÷ the faster of both", "GB/s", "share of plain read",
    ]  # fmt: skip
    return [
        "The server's work for one query over the encrypted index, beside exact searches of the same rows in float32 "
        "(FAISS `IndexFlatIP`, NumPy's product), and beside a plain sum over as many bytes as the index has. "
        "Candidates take turns in one process. Without network, client and top-k; approximate indexes are below. "
        "The plain sum is NumPy's, not the most that memory gives: a share of it can be above 1.",
        *table(header, map(row, runs.values())),
        *commands("overhead", runs.values()),
    ]


def whole(run: Run) -> list[str]:
    runs = run.found(*(f"service_{profile}" for profile in PROFILES))
    first = next(iter(runs.values()))["arguments"]

    def row(f: Figures) -> list[str]:
        q = f["query_s"]
        return [
            f"`{f['arguments']['profile']}`", ms(q["whole"]), ms(f["plaintext_s"]),
            number(f["ratio_query_vs_plaintext"]), ms(q["encrypt"]), ms(q["server"]), ms(q["recover"]),
            ms(f.get("server_alone_s")), ms(f.get("client_work_s")), number(f.get("ratio_client_vs_server")),
            number(f["recall_at_10"], ".4f"), number(f["server_rss_beyond_index_bytes"], ",.0f", 1e-6),
        ]  # fmt: skip

    batches = [
        [f"`{f['arguments']['profile']}`", size, ms(b["whole_s"]), ms(b["plaintext_s"]),
         number(b["whole_s"] / b["plaintext_s"])]
        for f in runs.values() for size, b in f["batch"].items()
    ]  # fmt: skip
    header = [
        "", "whole, ms", "FAISS, ms", "÷", "encrypt, ms", "until the last byte, ms", "after it, ms",
        "server alone, ms", "client's work, ms", "client ÷ server", "recall@10", "server memory beyond the index, MB",
    ]  # fmt: skip
    return [
        f"A search as a user has it, {first['rows']:,} × {first['dim']}: SDK, gRPC over loopback, server process with "
        f"{first['threads']} computing thread{'s'[: first['threads'] - 1]}, and back; beside FAISS behind the same "
        "gRPC stack. *Server alone* is the same call with the answers drained; *client's work* is all encrypting, "
        "verifying, decrypting and ranking, wherever it was hidden. Client and server share the machine; the network "
        "has no delay.",
        *table(header, map(row, runs.values())),
        "",
        "The same with several queries in one call, milliseconds a query; FAISS multiplies them as a matrix (BLAS).",
        *table(["", "queries", "whole, ms", "FAISS, ms", "÷"], batches),
        *commands("service", runs.values()),
    ]


def several(run: Run) -> list[str]:
    runs = run.found(*(f"concurrency_{profile}" for profile in PROFILES))
    first = next(iter(runs.values()))["arguments"]
    lines = [
        f"Queries at once over {first['rows']:,} × {first['dim']}, in one call, or from as many callers of one query "
        "each; wall time ÷ queries, over gRPC, answers drained. FAISS multiplies the queries of one call as a matrix "
        "(BLAS); its server here does not gather what callers send separately. Callers and server share the machine.",
        *picture("concurrency"),
    ]
    header = [
        "", "queries", "one call, ms a query", "times faster than alone", "FAISS, ms", "÷ FAISS",
        "callers, ms a query", "times faster than alone", "FAISS, ms", "÷ FAISS",
    ]  # fmt: skip

    def cells(f: Figures) -> list[str]:
        return [
            ms(f["s_per_query"]), number(f["times_faster_than_alone"], ".1f"), ms(f["faiss_s_per_query"]),
            number(f["ratio_vs_faiss"]),
        ]  # fmt: skip

    rows = [
        [f"`{f['arguments']['profile']}`", size, *cells(f["batch"][size]), *cells(f["concurrent"][size])]
        for f in runs.values()
        for size in f["batch"]
    ]
    return [*lines, *table(header, rows), *commands("concurrency", runs.values())]


def client(run: Run) -> list[str]:
    runs = run.found(*(f"overhead_{profile}" for profile in PROFILES))
    a = next(iter(runs.values()))["arguments"]

    def row(f: Figures) -> list[str]:
        return [
            f"`{f['arguments']['profile']}`", number(f["encrypt_rows_per_s"], ",.0f"), ms(f["client_query_s"]),
            ms(f["client_recover_s"]), number(f["index_bytes_per_coordinate"]),
            number(f["query_bytes"], ",.0f", 1e-3), number(f["answer_bytes_per_row"]),
            number(f["hint_bytes_per_row"], ".1f"), number(f["client_cache_bytes_per_row"], ".1f"),
            number(f["score_error_std"], ".2e"), number(f["expected_score_error_std"], ".2e"),
        ]  # fmt: skip

    header = [
        "", "encryption, rows/s a core", "encrypt a query, ms", "verify and decrypt, ms", "index, bytes a coordinate",
        "query, KB", "answer, bytes a row", "hint, bytes a row", "… and fingerprint", "error of a score, std",
        "… expected",
    ]  # fmt: skip
    return [
        f"What the client does and keeps, {a['rows']:,} × {a['dim']}, one thread. A plaintext index has 4 bytes a "
        "coordinate and no cache. Hints and fingerprints count as downloaded, without ids; in memory they are larger.",
        *table(header, map(row, runs.values())),
        *commands("overhead", runs.values()),
    ]


def precision(run: Run) -> list[str]:
    runs = run.found(*(f"icd_{profile}" for profile in PROFILES))
    first = next(iter(runs.values()))
    identical = {True: "yes", False: "NO", None: "–"}

    def row(f: Figures) -> list[str]:
        return [
            f"`{f['profile']}`", number(f["recall_at_10"], ".4f"), number(f["score_error_std"], ".2e"),
            number(f["expected_score_error_std"], ".2e"), number(f["score_error_max"], ".2e"),
            identical[f["integer_identical"]], number(f["hit_at_10"], ".4f"), number(f["plaintext_hit_at_10"], ".4f"),
        ]  # fmt: skip

    header = [
        "", "recall@10", "error, std", "… expected", "error, largest", "bit-identical to the integer search",
        "right code in the first ten", "… in plaintext",
    ]  # fmt: skip
    return [
        f"Real data: all {first['rows']:,} ICD-10-CM titles, {first['queries']:,} inclusion terms as queries, "
        f"{first['scores_compared']:,} scores compared with the plaintext's. Recall counts ties.",
        *table(header, map(row, runs.values())),
        "```sh",
        f"python -m benchmarks.icd --profile PROFILE --queries {first['queries']}",
        "```",
    ]


def wire(run: Run) -> list[str]:
    f = run.load("wire")
    rows = [
        [
            title, number(f[ours], ",.0f"), number(f[plain], ",.0f"), number(f[f"ratio_{name}_vs_plain"]),
            number(f["framing_share"][name], ".4f", 100),
        ]
        for name, title, ours, plain in (
            ("download", "download of a part", "part_download_mb_s", "plain_download_mb_s"),
            ("upload", "upload of a segment", "part_upload_mb_s", "plain_upload_mb_s"),
            ("answer", "answers", "answer_mb_s", "plain_download_mb_s"),
        )
    ]  # fmt: skip
    return [
        f"Streams of {f['payload_bytes'] >> 20} MiB over loopback, beside the same number of messages of 1 MiB that "
        "the same gRPC library moves unparsed. Our rates have the server's work in them: it hashes what it reads and "
        f"stores ({number(f['sha256_mb_s'], ',.0f')} MB/s alone), writes and syncs ({number(f['disk_mb_s'], ',.0f')} "
        f"MB/s) and computes answers ({number(f['compute_mb_s'], ',.0f')} MB/s on one thread).",
        *table(["", "MB/s", "plain stream, MB/s", "ours ÷ plain", "framing, % of the payload"], rows),
        *commands("wire", [f]),
    ]


def at_rest(run: Run) -> list[str]:
    f = run.load("at_rest")
    rows = [
        [title, *(number(f[key][kind], ".3f") for kind in ("unsealed", "sealed")), number(f[f"ratio_{key[:-2]}"])]
        for key, title in (
            ("store_s", f"store a segment of {f['segment_bytes'] >> 20} MiB, s"),
            ("start_s", "start, its files in the page cache, s"),
            ("start_cold_s", "start, its files on the disk, s"),
            ("answer_s", "answer one query, s"),
        )
    ]
    sizes = list(next(iter(f["ciphers"].values())))
    rates = [[name, *(number(rate[size], ".1f") for size in sizes)] for name, rate in f["ciphers"].items()]
    return [
        f"A folder of {f['payload_bytes'] >> 20:,} MiB of indexes, sealed with "
        "AES-256-GCM and not, in one process without gRPC. To start is to open it and to bring every index into "
        "memory: mapped from the files, or decrypted. Nearly all of the difference is the system's handing out and "
        "mapping of memory for what is decrypted.",
        *table(["", "unsealed", "sealed", "sealed ÷ unsealed"], rows),
        f"A new key-encryption key took {number(f['rotate_kek_s'], ',.0f', 1000)} ms, a new data key for all of it "
        f"{number(f['rotate_data_key_s'], '.1f')} s. GB/s of opening, one thread, in chunks of so many KiB:",
        *table(["", *sizes], rates),
        *commands("at_rest", [f]),
    ]


def object_storage(run: Run) -> list[str]:
    f = run.load("cold_start")
    where = {"moto": "an S3 server (moto) on the same machine", "this machine": "an S3 server on the same machine"}
    what = where.get(f["storage"], "an object storage elsewhere")
    rows = [
        [title, number(f[f"{key}_s"], ".2f"), number(f[f"{key}_gb_per_s"], ",.0f", 1000) if key != "again" else ""]
        for key, title in (
            ("cold", "start on an empty folder"),
            ("shard", "a shard of a cluster, into its memory alone"),
            ("read", "read the objects alone"),
            ("write", "write and sync such files alone"),
            ("again", "start again, its copies on the disk"),
        )
    ]
    return [
        f"{f['file_bytes'] >> 20:,} MiB of segments, with {what}. To start is to fetch, check and sync all of them, "
        f"and to bring the indexes into memory. Of the two that bound it, {f['limit']} is the slower.",
        *table(["", "s", "MB/s"], rows),
        *commands("cold_start", [f]),
    ]


def catalogue(run: Run) -> list[str]:
    f = run.load("catalogue")
    rows = [
        [title, number(f[f"{key}_s"], ".2f", 1000)]
        for key, title in (
            ("look", "ask whether others changed anything (each call, up to four times)"),
            ("refresh", "the same, and read one segment that another server added"),
            ("add", "write the row of an uploaded segment"),
            ("commit", "commit a manifest that names all segments"),
            ("open", "open the catalogue, as a server does that starts"),
        )
    ]
    return [
        f"A sealed catalogue of {f['arguments']['segments']:,} segments in one collection, in a PostgreSQL on the same "
        "machine. A segment takes "
        f"{number(f['bytes_per_segment'], ',.0f')} bytes of the database (without dead rows) and "
        f"{number(f['memory_bytes_per_segment'], ',.0f')} of a server's memory for that row; adding one writes "
        f"{number(f['wal_bytes_per_add'], ',.0f')} bytes of PostgreSQL's log.",
        *table(["", "ms"], rows),
        *commands("catalogue", [f]),
    ]


def layers(run: Run) -> list[str]:
    runs = run.found(*(f"layers_{profile}" for profile in PROFILES))
    a = next(iter(runs.values()))["arguments"]

    def row(f: Figures) -> list[str]:
        steps = f["steps"]
        wanted = (steps["verification"]["median_s"], f["ratio_goal"], steps["observing"]["median_s"], f["ratio_all"])
        times = (ms(steps["plain"]["median_s"]), ms(wanted[0]), number(wanted[1]), ms(wanted[2]), number(wanted[3]))
        return [f"`{f['arguments']['profile']}`", *times]

    header = [
        "", "no layer, ms", "TLS, identity, policies, audit log, verification, ms", "÷",
        "quotas, encryption at rest, metrics, log, traces as well, ms", "÷",
    ]  # fmt: skip
    return [
        f"A whole query, {a['rows']:,} × {a['dim']}, encrypted in every column. [overhead.md](overhead.md) has it "
        "layer by layer, with intervals.",
        *table(header, map(row, runs.values())),
        *commands("layers", runs.values()),
    ]


def cold(run: Run) -> list[str]:
    runs = run.found(*(f"service_{profile}" for profile in PROFILES))

    def row(f: Figures) -> list[str]:
        return [
            f"`{f['arguments']['profile']}`", number(f["index_bytes"], ".2f", 1e-9),
            number(f["cold_page_cache_share"], ".0f", 100), number(f["cold_server_s"]),
            ms(f["cold_first_answer_s"]), number(f["cold_mb_s"], ",.0f"), number(f["cold_disk_mb_s"], ",.0f"),
            number(f["warm_server_s"]), ms(f["warm_first_answer_s"]),
            number(f["cold_client_bytes"], ",.0f", 1e-6), number(f["cold_client_open_s"]),
            number(f["cold_client_mb_s"], ",.0f"), number(f["insert_rows_per_s"], ",.0f"),
        ]  # fmt: skip

    header = [
        "", "index, GB", "still in memory, %", "cold start, s", "first answer, ms", "index read at, MB/s",
        "files alone, MB/s", "warm start, s", "first answer, ms", "client downloads, MB", "opened after, s",
        "MB/s", "insert, rows/s",
    ]  # fmt: skip
    return [
        "A server process started after the system was asked to forget its files, and once more with them in memory: "
        "until it listens, and its first answer, which reads the whole index; beside reading the same files one after "
        "the other, as cold. A client with nothing cached: what it downloads and opens before its first search, over "
        "loopback. The disk below may cache what this system forgot.",
        *table(header, map(row, runs.values())),
        *commands("service", runs.values()),
    ]


def growth(run: Run) -> list[str]:
    f = run.load("scaling")
    flat = {(one["profile"], one["dim"]): one for one in f["flatness"]}
    largest = {(p["profile"], p["dim"]): p for p in f["points"]}  # the last of each is the largest

    def row(key: tuple[str, int]) -> list[str]:
        p, one = largest[key], flat.get(key, {})
        return [
            f"`{p['profile']}`, d = {p['dim']}", f"{p['rows']:,}", number(p["index_bytes"], ".2f", 1e-9),
            number(p["server_ns_per_row"], ".1f"), number(p["faiss_ns_per_row"], ".1f"),
            number(p["server_gb_s"], ".1f"), number(one.get("points"), "d"), number(one.get("server")),
            number(one.get("faiss")),
        ]  # fmt: skip

    header = [
        "", "most rows", "index, GB", "ns a row there", "FAISS", "GB/s there", "sizes past the cache",
        "slowest ÷ fastest", "FAISS",
    ]  # fmt: skip
    trade = ["", "query, KB", "hint, bytes a row", "answer, bytes a row", "ns a row", "error of a score, std"]
    strides = [
        [
            f"`{p['profile']}`, stride {p['stride']}", number(p["query_bytes"], ",.0f", 1e-3),
            number(p["hint_bytes_per_row"], ".1f"), number(p["answer_bytes_per_row"]),
            number(p["server_ns_per_row"], ".1f"), number(p["score_error_std"], ".2e"),
        ]
        for p in f["strides"]
    ]  # fmt: skip
    p = f["strides"][0]
    return [
        "Time a row from 10,000 rows to the largest index, one thread, random residues. Flat is the goal once an index "
        f"no longer fits the last cache, here {f['cache_bytes'] >> 20} MiB: the slowest ÷ the fastest nanoseconds a "
        "row over those sizes.",
        *picture("scaling"),
        *table(header, map(row, largest)),
        f"Every stride that the parameters allow, d = {p['dim']}, {p['rows']:,} rows. The error is the parameters'.",
        *picture("strides"),
        *table(trade, strides),
        *commands("scaling", [f]),
    ]


def plan(run: Run) -> list[str]:
    f = run.load("pareto")

    def row(q: Figures) -> list[str]:
        m = q["measured"]
        return [
            f"`{q['profile']}`, stride {q['stride']}", number(m["sent_bytes"], ",.0f", 1e-3),
            number(q["cache_bytes_per_row"], ",.0f"), number(q["recall_at_10"], ".2f"), ms(m["server_s"]),
            ms(m["encrypt_s"] + m["recover_work_s"]), ms(m["latency_s"]), ms(q["predicted"]["latency_s"]),
            number(q["ratios"]["latency_s"]),
        ]  # fmt: skip

    header = [
        "", "query, KB", "cache, bytes a row", "recall@10 of 10 queries", "server, ms", "client's work, ms",
        "whole query, ms", "planned, ms", "planned ÷ measured",
    ]  # fmt: skip
    a = f["arguments"]
    taken = ", ".join(f"`{name}` {f['chosen'][name]} (fastest: {f['fastest'][name]})" for name in f["chosen"])
    near = sum(abs(q["ratios"]["latency_s"] - 1) <= 0.25 for q in f["points"])
    return [
        f"What the stride buys, {a['rows']:,} × {a['dim']}, a whole query over loopback, beside what `hesearch plan` "
        "expected of this machine, where client and server hinder each other (an overlap of "
        f"{number(f['overlap'])}: 1 would be not at all, 0 taking turns). Bytes as planned: "
        f"{'yes' if f['bytes_equal'] else 'NO'}. Whole queries: {near} of {len(f['points'])} plans are within 25 %, "
        f"the farthest is {number(f['largest_deviation'], '.0f', 100)} % off. On loopback the plan takes, "
        f"where a query bears a share of the first download, the strides: {taken}.",
        *picture("pareto"),
        *table(header, map(row, f["points"])),
        *commands("pareto", [f]),
    ]


def encrypted_peers(run: Run) -> list[str]:
    runs = run.found(*(f"overhead_{profile}" for profile in PROFILES))
    forms = {
        "TenSEAL, one dot product a row": "ratio_tenseal_vs_hint",
        "TenSEAL, dimension-packed, two rows a slot": "ratio_tenseal_packed_vs_hint",
        "TenSEAL, dimension-packed, one row a slot": "ratio_tenseal_packed_one_row_a_slot_vs_hint",
        "OpenFHE, dimension-packed, two rows a slot": "ratio_openfhe_packed_vs_hint",
        "OpenFHE, dimension-packed, one row a slot": "ratio_openfhe_packed_one_row_a_slot_vs_hint",
    }
    rows = [
        [title, *(number(f.get(key), ",.0f") for f in runs.values())]
        for title, key in forms.items()
        if any(f.get(key) is not None for f in runs.values())
    ]
    profiles = [f"÷ `{f['arguments']['profile']}`" for f in runs.values()]
    missing = [name for name, version in next(iter(runs.values())).get("versions", {}).items() if version is None]
    return [
        "The same query through other libraries' encryption, server time on one thread ÷ ours: measured on samples, "
        "extrapolated to all rows; one row a slot is derived, twice the time of two."
        + (f" Not installed for this run: {', '.join(missing)}." if missing else ""),
        *table(["", *profiles], rows),
        *commands("overhead", runs.values()),
    ]


def approximate(run: Run) -> list[str]:
    f = run.load("approximate")
    a, times = f["arguments"], f["times_s"]
    rows = [
        [f"encrypted, `{a['profile']}`", ms(times["server"]["median"]), "1", number(f["recall_at_10"], ".4f"), "–", "–"]
    ]
    for name, title in (("faiss", "FAISS `IndexFlatIP`"), ("hnsw", "FAISS HNSW"), ("ivf", "FAISS IVF")):
        if name in times:
            one = f["approximate"].get(name) or {"recall_at_10": 1.0}
            rows.append(
                [
                    title + (f", {one['parameter']} = {one['value']}" if "parameter" in one else ""),
                    ms(times[name]["median"]), number(f[f"ratio_server_vs_{name}"], ".3g"),
                    number(one["recall_at_10"], ".4f"), number(one.get("build_s"), ",.1f"),
                    number(one.get("bytes"), ",.0f", 1e-6),
                ]
            )  # fmt: skip
    return [
        "What a plaintext user may choose instead of reading every row, and an encrypted search cannot: the price of "
        f"exactness and secrecy. {a['rows']:,} × {a['dim']}, {a['threads']} thread{'s'[: a['threads'] - 1]}, clustered "
        "rows and queries near some of them, which makes HNSW and IVF look better than on real embeddings.",
        *table(["", "ms", "encrypted ÷ it", "recall@10", "built in, s (all cores)", "index, MB"], rows),
        *commands("overhead", [f]),
    ]


def instructions(run: Run) -> list[str]:
    f = run.load("kernels")
    columns = list(dict.fromkeys(tuple(key.split(" ", 2)[:2]) for key in f["kernels"]))
    kernels = {key.split(" ", 2)[2]: one["unit"] for key, one in f["kernels"].items()}
    counts = {key: one["count"] for key, one in f["kernels"].items()}
    rows = [
        [f"{kernel}, a {unit}", *(number(counts.get(f"{profile} {target} {kernel}")) for profile, target in columns)]
        for kernel, unit in kernels.items()
    ]
    tools = f["tools"]
    return [
        "Instructions that the kernels execute, counted by callgrind at d = 512: the same in every run, whatever else "
        f"the machine does. {tools['compiler']}, {tools['valgrind']}, {tools['architecture']}; not counted: AVX-512.",
        *table(["", *(f"`{profile}` {target}" for profile, target in columns)], rows),
        "```sh",
        "python -m benchmarks.kernels",
        "```",
    ]

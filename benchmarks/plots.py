"""The plots of docs/benchmarks.md and other pages: figures → SVG files, the same bytes from the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Point = Mapping[str, Any]


def _pyplot() -> Any:
    """matplotlib, drawing into files only. Raises ImportError where it is not installed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "hesearch"
    from matplotlib import pyplot

    return pyplot


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _of(points: Sequence[Point], **wanted: Any) -> list[Point]:
    return [p for p in points if all(p[name] == value for name, value in wanted.items())]


def _values(points: Sequence[Point], name: str) -> list[Any]:
    return [p[name] for p in points]


def scaling(points: Sequence[Point], path: Path) -> None:
    """Nanoseconds a row against rows, one panel a profile, one line a dimension; FAISS dotted."""
    pyplot = _pyplot()
    profiles, dims = (list(dict.fromkeys(_values(points, name))) for name in ("profile", "dim"))
    figure, panels = pyplot.subplots(1, len(profiles), figsize=(12, 4.2), sharey=True, squeeze=False)
    for panel, profile in zip(panels[0], profiles, strict=True):
        for number, dim in enumerate(dims):
            line = _of(points, profile=profile, dim=dim)
            rows, colour = _values(line, "rows"), f"C{number}"
            panel.plot(rows, _values(line, "server_ns_per_row"), "o-", color=colour, label=f"d = {dim}")
            panel.plot(rows, [p["faiss_ns_per_row"] or float("nan") for p in line], ":", color=colour)
        panel.set(xscale="log", yscale="log", xlabel="rows", title=f"{profile} (dotted: FAISS IndexFlatIP)")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("server, ns a row")
    panels[0][-1].legend()
    _save(pyplot, figure, path)


def strides(points: Sequence[Point], path: Path) -> None:
    """What the stride trades: time a row, bytes, precision; one line a profile."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, 4, figsize=(14, 3.8))
    drawn = {
        "server_ns_per_row": "server, ns a row",
        "query_bytes": "query, bytes",
        "hint_bytes_per_row": "hint, bytes a row",
        "score_error_std": "error of a score, standard deviation",
    }
    for panel, (name, title) in zip(panels, drawn.items(), strict=True):
        for style, profile in zip(("o-", "s-", "x:"), dict.fromkeys(_values(points, "profile")), strict=False):
            line = _of(points, profile=profile)
            panel.plot(_values(line, "stride"), _values(line, name), style, label=profile)
        panel.set(xscale="log", yscale="log", xlabel="stride", title=title)
        ticks = sorted({p["stride"] for p in points})[::2]
        panel.set_xticks(ticks, map(str, ticks))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_yscale("linear")
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    _save(pyplot, figure, path)


def concurrency(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Milliseconds a query against queries at once, one panel a run of benchmarks.concurrency; FAISS dotted."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, len(runs), figsize=(5 * len(runs) + 1, 4), squeeze=False)
    for panel, run in zip(panels[0], runs, strict=True):
        for colour, (way, label) in enumerate({"batch": "one call", "concurrent": "callers at once"}.items()):
            sizes = [int(size) for size in run[way]]
            for name, style, who in (("s_per_query", "o-", "encrypted"), ("faiss_s_per_query", ":", "FAISS")):
                milliseconds = [figures[name] * 1e3 for figures in run[way].values()]
                panel.plot(sizes, milliseconds, style, color=f"C{colour}", label=f"{who}, {label}")
        panel.set(xscale="log", xlabel="queries at once", title=run["arguments"]["profile"])
        panel.set_xticks(sizes, map(str, sizes))
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("ms a query")
    panels[0][-1].legend()
    _save(pyplot, figure, path)


def layers(runs: Sequence[Mapping[str, Any]], goal: float, path: Path) -> None:
    """A bar for each step of benchmarks.layers, with the 95 % of its ratio; one panel a run. Dotted: the goal."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, len(runs), figsize=(5.5 * len(runs) + 1, 4), sharey=True, squeeze=False)
    for panel, run in zip(panels[0], runs, strict=True):
        steps = list(run["steps"].values())
        plain, ratios = steps[0]["median_s"] * 1e3, _values(steps, "ratio_to_plain")
        ends = (_values(steps, "ratio_to_plain_low"), _values(steps, "ratio_to_plain_high"))
        errors = [[plain * abs(ratio - end) for ratio, end in zip(ratios, side, strict=True)] for side in ends]
        labels = [name if name == "plain" else f"+ {name.replace('_', ' ')}" for name in run["steps"]]
        panel.barh(labels, [plain * ratio for ratio in ratios], xerr=errors, color="C0", ecolor="0.3", capsize=3)
        panel.axvline(goal * plain, linestyle=":", color="C3", label=f"{goal} × plain")
        panel.set(xlabel="ms a query", title=run["arguments"]["profile"], xlim=(0, None))
        panel.grid(alpha=0.3, axis="x")
    panels[0][0].invert_yaxis()
    panels[0][-1].legend(loc="lower left")
    _save(pyplot, figure, path)


def pareto(points: Sequence[Point], path: Path) -> None:
    """Of benchmarks.pareto: upload against cache, strides named; and the times of a query against the stride."""
    pyplot = _pyplot()
    profiles = list(dict.fromkeys(_values(points, "profile")))
    figure, (trade, *panels) = pyplot.subplots(1, 1 + len(profiles), figsize=(4.5 * (1 + len(profiles)), 4.2))
    for panel, profile in zip(panels, profiles, strict=True):
        line = _of(points, profile=profile)
        measured = _values(line, "measured")
        sent, kept = [m["sent_bytes"] / 1e3 for m in measured], _values(line, "cache_bytes_per_row")
        trade.plot(sent, kept, "o-", label=profile)
        for point, at in zip(line, zip(sent, kept, strict=True), strict=True):
            trade.annotate(str(point["stride"]), at, textcoords="offset points", xytext=(4, 4), fontsize=8)
        seconds = {
            "server": [m["server_s"] for m in measured],
            "client": [m["encrypt_s"] + m["recover_work_s"] for m in measured],
            "whole query": [m["latency_s"] for m in measured],
            "whole query, planned": [p["latency_s"] for p in _values(line, "predicted")],
        }
        for label, times in seconds.items():
            style = ":" if "planned" in label else "o-"
            panel.plot(_values(line, "stride"), [t * 1e3 for t in times], style, label=label)
        panel.set(xscale="log", yscale="log", xlabel="stride", ylabel="ms a query", title=profile)
        panel.grid(alpha=0.3)
    trade.set(xscale="log", yscale="log", xlabel="query sent, KB", ylabel="cache, bytes a row", title="by stride")
    trade.grid(alpha=0.3)
    trade.legend()
    panels[-1].legend()
    _save(pyplot, figure, path)


def privacy(figures: Mapping[str, Any], path: Path) -> None:
    """Of benchmarks.privacy: recall and accuracy against ε; dotted, what there is without noise."""
    pyplot = _pyplot()
    figure, (search, training) = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    for panel, name, value, unit in (
        (search, "retrieval", "recall_at_10", "dim"),
        (training, "training", "accuracy", "rows"),
    ):
        for number, one in enumerate(dict.fromkeys(_values(figures[name], unit))):
            points = _of(figures[name], **{unit: one})
            noisy = [point for point in points if point["epsilon"] is not None]
            label = f"{unit} = {one:,}"
            panel.plot(_values(noisy, "epsilon"), _values(noisy, value), "o-", color=f"C{number}", label=label)
            panel.axhline(_of(points, epsilon=None)[0][value], color=f"C{number}", ls=":")
        panel.set(xscale="log", xlabel="ε", ylim=(0, 1.02))
        ticks = [epsilon for epsilon in dict.fromkeys(_values(figures[name], "epsilon")) if epsilon is not None]
        panel.set_xticks(ticks, map(str, ticks))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend()
    search.set(ylabel="share", title="recall@10 of noisy embeddings")
    training.axhline(figures["largest_class"], color="grey", ls="--")
    training.set(title="accuracy (dashed: always the largest class)")
    _save(pyplot, figure, path)


def healthcare(figures: Mapping[str, Any], path: Path) -> None:
    """Of examples.healthcare: accuracy against the time of a prediction, and against ε; bars of 95 %."""
    pyplot = _pyplot()
    figure, (cost, privacy) = pyplot.subplots(1, 2, figsize=(12, 4.4), sharey=True)
    plain = [row for row in figures["rows"] if row["epsilon"] is None]
    for number, row in enumerate(plain):
        label, colour = row["method"].replace("`", ""), f"C{number}"
        if row["predict_s"] is None:
            cost.axhline(row["accuracy"], linestyle=":", color=colour, label=label)
        else:
            cost.errorbar(row["predict_s"] * 1e3, row["accuracy"], _bars([row]), fmt="o", color=colour, label=label)
            privacy.axhline(row["accuracy"], linestyle=":", color=colour)
    noisy = [row for row in figures["rows"] if row["epsilon"] is not None]
    for number, method in enumerate(dict.fromkeys(_values(noisy, "method")), len(plain)):
        line = _of(noisy, method=method)
        x, y = _values(line, "epsilon"), _values(line, "accuracy")
        privacy.errorbar(x, y, _bars(line), fmt="o-", color=f"C{number}", label=method)
    ticks = sorted(set(_values(noisy, "epsilon")))
    privacy.set(xscale="log", xlabel=f"ε (δ = {figures['delta']:g}; dotted: without noise)")
    privacy.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    privacy.minorticks_off()
    cost.set(xscale="log", xlabel="a prediction, ms", ylabel="accuracy", ylim=(0, 1))
    for panel in (cost, privacy):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    _save(pyplot, figure, path)


def _bars(rows: Sequence[Point]) -> list[list[float]]:
    """Lengths below and above."""
    return [[row["accuracy"] - row["low"] for row in rows], [row["high"] - row["accuracy"] for row in rows]]


def inversion(figures: Mapping[str, Any], path: Path) -> None:
    """Of benchmarks.inversion: noise against what is found, leaked scores likewise, and every view's choice of two."""
    pyplot = _pyplot()
    figure, (noise, leak, pairs) = pyplot.subplots(1, 3, figsize=(17, 5.2))
    views = figures["views"]
    private = _of(views, group="dp")
    epsilons, corpus = _values(private, "epsilon"), [list(m.values())[-1] for m in _values(private, "match")]
    shares = _values(corpus, "share")
    errors = [[m["share"] - m["low"] for m in corpus], [m["high"] - m["share"] for m in corpus]]
    noise.errorbar(epsilons, shares, errors, fmt="o-", color="C3", capsize=3, label="text found first")
    noise.plot(epsilons, [w["linear"]["f1"] for w in _values(private, "words")], "s-", color="C1", label="words, F1")
    noise.plot(
        epsilons, [q["hit_at_10"] for q in _values(private, "quality")], "o-", color="C0", label="search, hit@10"
    )
    noise.axhline(views[0]["quality"]["hit_at_10"], linestyle=":", color="C0", label="… in plaintext")
    noise.axhline(figures["prior"]["f1"], linestyle=":", color="C1", label="… the most frequent words")
    noise.set(xscale="log", xlabel="ε (δ = 1e-6)", ylim=(-0.02, 1.05), title="rows with differential privacy")
    points = figures["scores"]["points"]
    for number, decimals in enumerate(dict.fromkeys(_values(points, "decimals"))):
        line, label = _of(points, decimals=decimals), "every digit" if decimals is None else f"{decimals} decimals"
        counts, colour = _values(line, "scores"), f"C{number}"
        leak.plot(counts, [m["share"] for m in _values(line, "match")], "o-", color=colour, label=f"found, {label}")
        leak.plot(counts, _values(line, "cosine_with_corpus"), ":", color=colour)
    leak.axvline(figures["dim"], color="0.7")
    leak.set(xscale="log", xlabel="scores of a row that leaked", ylim=(-0.02, 1.05))
    leak.set_title("scores alone (dotted: cosine of what is recovered; line: d)")
    shown = [v for v in views if v["group"] in ("ciphertext", "control")]
    for place, view in enumerate(shown):
        two, colour = view["match"]["2"], "C0" if view["group"] == "ciphertext" else "C3"
        sides = [[two["share"] - two["low"]], [two["high"] - two["share"]]]
        pairs.errorbar([two["share"]], [place], xerr=sides, fmt="o", color=colour, capsize=3)
    labels = [v["name"] if v["group"] == "ciphertext" else f"broken: {v['name']}" for v in shown]
    pairs.set_yticks(range(len(shown)), labels)
    pairs.invert_yaxis()
    pairs.axvline(0.5, linestyle=":", color="0.3")
    pairs.set(xlabel="the right one of two, 99 %", title="ciphertexts, and controls (red)", xlim=(0.3, 1.02))
    for panel in (noise, leak, pairs):
        panel.grid(alpha=0.3)
    noise.legend(fontsize=8)
    leak.legend(fontsize=8)
    _save(pyplot, figure, path)

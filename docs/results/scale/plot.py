"""Draw success against λ: ours of sweep.csv, one line a task, and the paper's Table I (square), each over its own λ.

python docs/results/scale/plot.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PAPER = {0.10: 0.86, 0.15: 0.95, 0.20: 0.98, 0.25: 0.96, 0.50: 0.74}


def main() -> None:
    """Write scale.png."""
    tasks: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    ranges = {}
    for row in csv.DictReader((HERE / "sweep.csv").open()):
        tasks[row["task"]][float(row["scale"])].append(float(row["success"]))
        ranges[row["task"]] = float(row["calibrated_low"]), float(row["calibrated_high"]), float(row["base"])
    figure, axes = plt.subplots(1, len(tasks) + 1, figsize=(3 * len(tasks) + 3, 2.8), sharey=True, layout="constrained")
    for axis, (task, values) in zip(axes, tasks.items(), strict=False):
        low, high, base = ranges[task]
        axis.axvspan(low, high, color="tab:green", alpha=0.15, label="calibrated range")
        axis.axhline(base, color="gray", linestyle="--", linewidth=1, label="base policy")
        scales = sorted(values)
        axis.plot(scales, [fmean(values[scale]) for scale in scales], "o-", markersize=4)
        points = [(scale, success) for scale in scales for success in values[scale]]
        axis.scatter(*zip(*points, strict=True), s=8)
        axis.set_title(task)
        axis.set_xscale("log")
        axis.set_xticks(scales, [f"{scale:g}" for scale in scales], minor=False)
    axes[-1].plot(list(PAPER), list(PAPER.values()), "o-", color="tab:orange", markersize=4)
    axes[-1].set(title="paper: square", xscale="log")
    axes[-1].set_xticks(list(PAPER), [f"{scale:g}" for scale in PAPER])
    for axis in axes:
        axis.minorticks_off()
        axis.set(xlabel="λ", ylim=(0, 1.02))
    axes[0].set_ylabel("success")
    axes[0].legend(fontsize=7, loc="lower left")
    figure.savefig(HERE / "scale.png", dpi=130)


if __name__ == "__main__":
    main()

"""How long the audit of a full-size table of face pairs takes, and whether it finds the rates that were put in.

    python benchmarks/verification.py [--folder FOLDER]

The table has the columns and the size of BFW's: 921,379 pairs, 800 subjects, eight subgroups, five folds. Scores are
normal, so that the true rates at a threshold t are 1 - Phi(t - m0) and Phi(t - m1). The whole command is timed, with
intervals over 1,000 draws of the subjects, the JSON and the page.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pyarrow
import pyarrow.csv

from evenlens.datasets.bfw import IMPOSTER_BY_SUBGROUP, INITIALS, SUBGROUPS

SUBJECTS, IMAGES, FOLDS = 100, 25, 5  # a subgroup, a subject, in all
GENUINE = np.array([3.2, 3.3, 3.1, 3.4, 3.2, 3.3, 3.6, 3.7])
IMPOSTERS = np.array([0.0, 0.1, 0.2, 0.04, 0.16, 0.06, -0.1, -0.2])


def imposters(subgroup, number, generator):
    """Draw different pairs of images of two subjects in one fold."""
    of_fold, keys = SUBJECTS // FOLDS, np.zeros(0, dtype=np.int64)
    while len(keys) < number:
        one = generator.integers(SUBJECTS, size=2 * number)
        other = one // of_fold * of_fold + (one % of_fold + generator.integers(1, of_fold, size=2 * number)) % of_fold
        first, second = ((SUBJECTS * subgroup + side) * IMAGES + generator.integers(IMAGES, size=2 * number)
                         for side in (one, other))  # fmt: skip
        total = len(SUBGROUPS) * SUBJECTS * IMAGES
        keys = np.unique(np.concatenate([keys, np.minimum(first, second) * total + np.maximum(first, second)]))
    return np.stack(np.divmod(generator.permutation(keys)[:number], total), axis=1)


def write_table(path, seed=0):
    """Write the table."""
    generator = np.random.default_rng(seed)
    images = np.array([f"{name}/n{SUBJECTS * k + s:06d}/{i:04d}_01.jpg" for k, name in enumerate(SUBGROUPS)
                       for s in range(SUBJECTS) for i in range(IMAGES)])  # fmt: skip
    inside = np.array(list(combinations(range(IMAGES), 2)))
    same = (IMAGES * np.arange(len(SUBGROUPS) * SUBJECTS)[:, None, None] + inside).reshape(-1, 2)
    different = [imposters(k, number, generator) for k, number in enumerate(IMPOSTER_BY_SUBGROUP.values())]
    sides = np.concatenate([same, *different])
    label = (np.arange(len(sides)) < len(same)).astype(int)
    subject = sides // IMAGES
    group = subject[:, 0] // SUBJECTS
    score = np.where(label == 1, GENUINE[group], IMPOSTERS[group]) + generator.normal(size=len(sides))
    columns = {"fold": subject[:, 0] % SUBJECTS // (SUBJECTS // FOLDS) + 1}
    columns |= {"p1": images[sides[:, 0]], "p2": images[sides[:, 1]], "label": label}
    for side in (0, 1):
        columns[f"att{side + 1}"] = np.array(SUBGROUPS)[subject[:, side] // SUBJECTS]
        columns[f"a{side + 1}"] = np.array(INITIALS)[subject[:, side] // SUBJECTS]
    pyarrow.csv.write_csv(pyarrow.table(columns | {"normal": score}), path)
    return len(sides)


def check(content):
    """Count the rates whose interval holds the truth, at the mean of the folds' thresholds."""
    held = {"fmr": 0, "fnmr": 0}
    for k, target in enumerate(content["targets"]):
        for g, group in enumerate(content["groups"]):
            thresholds = target["threshold"]["by_fold"]
            truth = {
                "fmr": np.mean([1 - NormalDist(IMPOSTERS[g]).cdf(t) for t in thresholds]),
                "fnmr": np.mean([NormalDist(GENUINE[g]).cdf(t) for t in thresholds]),
            }
            for name, value in truth.items():
                found = group["at"][k]["pooled"][name]
                held[name] += found["low"] <= value <= found["high"]
    return held, len(content["targets"]) * len(content["groups"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the table is written; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        pairs = write_table(folder / "pairs.csv")
        words = ["verify", folder / "pairs.csv", "--json", folder / "f.json", "--page", folder / "v.html"]
        program = "from evenlens.cli import main; main()"
        before, began = os.times(), time.perf_counter()
        subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - began, os.times()
        held, number = check(json.loads((folder / "f.json").read_text()))
    processor = after.children_user - before.children_user + after.children_system - before.children_system
    print(
        f"evenlens verify: {pairs:,} pairs in {seconds:.1f} s ({processor:.1f} s of processor time), "
        f"{held['fmr']} of {number} FMR and {held['fnmr']} of {number} FNMR within their 95 % intervals"
    )


if __name__ == "__main__":
    main()

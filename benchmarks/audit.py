"""How long an audit takes: equalized odds with a bootstrap against fairlearn's, and ten million rows from a file.

    python benchmarks/audit.py [--rows 10000000] [--fairlearn-replicates 20]

Everything runs on one core, in processes of its own. fairlearn's MetricFrame draws its bootstrap with n_boot; it is
timed over few replicates, and its time for 1,000 is that times the ratio, as its time grows with their number.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, GROUPS, REPLICATES = 20_000, 4, 1000
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS", "OMP_THREAD_LIMIT"), "1")


def predictions(num, seed=0):
    import numpy as np

    generator = np.random.default_rng(seed)
    group = generator.integers(GROUPS, size=num)
    label = generator.integers(2, size=num)
    right = generator.random(num) < 0.85 + 0.03 * group
    return label, np.where(right, label, 1 - label), group


def ours():
    """Time equalized odds with 1,000 replicates, counting the rows included."""
    from evenlens import metrics

    label, prediction, group = predictions(ROWS)

    def audit(replicates):
        counts = metrics.count(prediction, label, group, 2, GROUPS)
        return metrics.bootstrap("equalized_odds_difference", counts, replicates)

    audit(10)
    seconds = {}
    for replicates in (100, REPLICATES):
        times = []
        for _ in range(20):
            began = time.perf_counter()
            audit(replicates)
            times.append(time.perf_counter() - began)
        seconds[replicates] = sorted(times)[len(times) // 2]
    return {"seconds": seconds[REPLICATES], "seconds_100": seconds[100]}


def fairlearns(replicates):
    """Time what fairlearn needs for the true and the false positive rate by group, with its bootstrap."""
    import warnings

    from fairlearn.metrics import MetricFrame, false_positive_rate, true_positive_rate

    warnings.filterwarnings("ignore")
    label, prediction, group = predictions(ROWS)
    rates = {"tpr": true_positive_rate, "fpr": false_positive_rate}
    began = time.perf_counter()
    MetricFrame(
        metrics=rates, y_true=label, y_pred=prediction, sensitive_features=group, n_boot=replicates,
        ci_quantiles=[0.025, 0.975],
    )  # fmt: skip
    return {"seconds": (time.perf_counter() - began) * REPLICATES / replicates}


def whole(path):
    """Audit a file as the command does; give seconds and the process's largest memory."""
    from evenlens import audits

    began = time.perf_counter()
    found = audits.audit_file(path, "label", "prediction", ["gender", "race"])
    found.as_dict()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "gigabytes": largest_memory() / 1024**2, "images": len(found.rows)}


def largest_memory():
    """Give the most memory that this process had, in KiB: getrusage also counts what its parent had when it forked."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def write_parquet(path, num):
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    label, prediction, group = predictions(num)
    words = np.array(["not smiling", "smiling"])
    columns = {
        "label": words[label], "prediction": words[prediction], "gender": np.array(["female", "male"])[group % 2],
        "race": np.array(["A", "B"])[group // 2],
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def call(*words):
    made = subprocess.run(
        [sys.executable, __file__, *map(str, words)], env={**os.environ, **ONE_CORE}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(made.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--fairlearn-replicates", type=int, default=20)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        parts = {
            "ours": ours,
            "fairlearn": lambda: fairlearns(given.fairlearn_replicates),
            "file": lambda: whole(given.file),
        }
        print(json.dumps(parts[given.part]()))
        return
    fast = call("--part", "ours")
    slow = call("--part", "fairlearn", "--fairlearn-replicates", given.fairlearn_replicates)
    print(f"equalized odds, {ROWS:,} rows, {GROUPS} groups, {REPLICATES:,} replicates, one core")
    print(f"  evenlens   {1000 * fast['seconds']:8.1f} ms   ({1000 * fast['seconds_100']:.1f} ms with 100 replicates)")
    ratio = slow["seconds"] / fast["seconds"]
    print(f"  fairlearn  {1000 * slow['seconds']:8,.0f} ms   evenlens is {ratio:,.0f} times faster")
    print("a Parquet file, all of its audit: rates, every gap with its interval, what chance gives")
    with tempfile.TemporaryDirectory() as place:
        for num in (given.rows // 10, given.rows):
            path = Path(place) / f"{num}.parquet"
            write_parquet(path, num)
            found = call("--part", "file", "--file", path)
            print(f"  {num:12,} rows  {found['seconds']:6.1f} s  {found['gigabytes']:.2f} GiB at most")


if __name__ == "__main__":
    main()

"""Measure whether pseudo-labels are better if the labeler sees place and date: precision and recall.

    SYNTHETIC=synthetic.zarr python experiments/benchmarks/pseudo_labels.py --out runs/pseudo-labels --jobs 2

Every semi-supervised algorithm trains three times with each seed, with equal steps and labels: without a teacher, with
a teacher, and with a teacher that never gets metadata (the control). Numbers are means over the last quarter of
training. F1 compares the pseudo-labels that count in the loss with the true labels.
"""

import argparse
import json
from pathlib import Path

from study import Job, carry_out, spread

from stssl.algorithms import NAMES

ALGORITHMS = tuple(name for name in NAMES if name != "supervised")
LABELERS = {
    "none": ("model.metadata=none",),
    "teacher": ("model.metadata=teacher",),
    "absent": ("model.metadata=teacher", "model.encoder.place=false", "model.encoder.date=false"),
}


def quality(job: Job) -> dict[str, float]:
    """Compute how good the pseudo-labels of a run were: mean precision, recall and F1 in the last quarter of training.

    Also return the test score mAP (mean average precision) of the run.
    """
    rows = [json.loads(line) for line in (job.out / job.name / "metrics.jsonl").read_text().splitlines()]
    last = max(row["step"] for row in rows)
    late = [row for row in rows if row["step"] > 0.75 * last and "pseudo_claimed" in row]
    claimed, actual, right = (sum(row[f"pseudo_{key}"] for row in late) for key in ("claimed", "actual", "right"))
    precision, recall = right / max(claimed, 1e-12), right / max(actual, 1e-12)
    f1 = 2 * precision * recall / max(precision + recall, 1e-12)
    scores = job.result("test")["student"]["scores"]
    return {"precision": precision, "recall": recall, "F1": f1, "test": scores.get("mAP", scores.get("accuracy"))}


def main() -> None:
    """Train the runs that are not finished yet, and print a table of how good their pseudo-labels are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="experiments/synthetic/fixmatch_teacher.yaml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="official")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of all runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    jobs = {
        (algorithm, labeler, seed): Job(
            options.recipe, (f"algorithm={{name: {algorithm}}}", *changes, *options.set), options.split, seed, out
        )
        for seed in options.seeds
        for algorithm in options.algorithms
        for labeler, changes in LABELERS.items()
    }
    carry_out(list(jobs.values()), options.jobs)
    rows = []
    print("| algorithm | labeler's metadata | precision | recall | F1 | student, test |\n|" + " --- |" * 6)
    for algorithm, labeler in dict.fromkeys((algorithm, labeler) for algorithm, labeler, _ in jobs):
        found = [quality(jobs[algorithm, labeler, seed]) for seed in options.seeds]
        row = {key: [one[key] for one in found] for key in found[0]}
        rows.append({"algorithm": algorithm, "labeler": labeler, **row})
        print(
            f"| {algorithm} | {labeler} | " + " | ".join(spread(values) for values in row.values()) + " |", flush=True
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

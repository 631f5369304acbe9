"""Run all steps on generated data: archive, store, training on two workers, evaluation, report."""

import json
from pathlib import Path

from rich.console import Console

from stssl.analysis.report import write_report
from stssl.archives.conversion import Options, convert
from stssl.archives.synthetic import synthesize
from stssl.base.config import Tree, apply_overrides, merge, parse_tree, validate
from stssl.commands.progress import conversion_summary, counting, score_table, training_progress
from stssl.recipes.recipe import Recipe
from stssl.store.description import describe_store
from stssl.store.store import Store
from stssl.training.launch import run
from stssl.training.run_folder import write_text
from stssl.training.trained_run import evaluate_run

RECIPE = """\
# Semi-supervised land cover from 10 % labels: FixMatch whose teacher also sees place and date (ST-FixMatch).
# A small network at 24 px, so that it trains in one to three minutes on two CPU cores.
name: quickstart
data: {store: "${STORE}", split: official, bands: [B04, B03, B02, B08, B11], labels: labels_19}
labels: {fraction: 0.1, allow_missing_classes: true}
model:
  backbone: slim_resnet
  image_size: 24
  metadata: teacher
  encoder: {name: raw}
  injection: {name: late}
algorithm: {name: fixmatch}
loss: {unlabeled: 1.0, distillation: 0.01}
batch: {labeled: 16, unlabeled_ratio: 3}
augment: {strong_labeled: true}
optimizer: {lr: 2.0e-3}
schedule: {steps: 500, warmup: 50, supervised_start: 200, evaluate_every: 100}
ema: {decay: 0.98}
evaluation: {batchnorm_batches: 2}
launch: {workers: 2}
logging: {every: 20}
"""


def run_quickstart(out: Path, console: Console, patches: int = 4000, overrides: tuple[str, ...] = ()) -> Path:
    """Run all steps in one folder and return the report's path; a second call resumes where the first stopped.

    Args:
        out: Folder that keeps the archive, the store, the recipe, the run and the report.
        console: Where to show progress.
        patches: Number of patches to generate.
        overrides: `key=value` changes to the recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    archive, store = out / "archive", out / "store.zarr"
    console.rule("1  a synthetic archive in the BigEarthNet v1.0 file layout")
    with counting(console, "write", "patches") as progress:
        synthesize(archive, patches=patches, seed=0, progress=progress)
    console.rule("2  convert it to a Zarr store")
    with counting(console, "convert", "shards") as progress:
        summary = convert("bigearthnet-v1", archive, store, Options(shard=128), progress)
    console.print(conversion_summary(summary), highlight=False, markup=False, soft_wrap=True)
    console.print(describe_store(Store.open(store)), highlight=False, markup=False, soft_wrap=True)
    console.rule("3  train: a teacher that sees place and date, a student that does not")
    text = RECIPE.replace('"${STORE}"', json.dumps(str(store.absolute())))
    write_text(out / "recipe.yaml", text)
    where: Tree = {"launch": {"storage": str(out.absolute() / "runs")}}
    tree = apply_overrides(merge(parse_tree(text, "quickstart"), where), overrides)
    recipe = validate(Recipe, tree, str(out / "recipe.yaml"))
    with training_progress(console, recipe.schedule.steps, recipe.launch.workers != 0) as watch:
        folder = run(recipe, watch)
    console.rule("4  evaluate and report")
    for part in ("validation", "test"):
        console.print(score_table(evaluate_run(folder.path, part), part))
    return write_report([folder.path], out / "report.html")

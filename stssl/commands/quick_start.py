"""Run all steps of the package on generated data, for `stssl quickstart`."""

import json
import shutil
from pathlib import Path
from typing import Literal

from rich.console import Console

from stssl.analysis.report import write_report
from stssl.api.progress import conversion_summary, counting, run_with_progress, score_table
from stssl.archives.conversion import Options, convert_archive
from stssl.archives.synthetic import synthesize_archive
from stssl.base.config import Tree, apply_overrides, merge, parse_tree, validate
from stssl.base.whole_files import as_size
from stssl.recipes.recipe import Recipe
from stssl.store.description import describe_store
from stssl.store.store import Store
from stssl.training.run_folder import RunFolder, write_text
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


Keep = Literal["all", "store", "none"]
"""Which of the generated data to keep: archive and store, only the store, or nothing."""


def run_quickstart(
    out: Path, console: Console, patches: int = 4000, overrides: tuple[str, ...] = (), keep: Keep = "store"
) -> Path:
    """Run all steps of the package on generated data in one folder, and return the path of the report.

    The steps are: archive, store, training, evaluation, report. A second call resumes where the first stopped.

    Args:
        out: Folder of the archive, the store, the recipe, the run and the report. If it is missing, it is made.
        console: Console that shows progress.
        patches: Number of patches to generate.
        overrides: Changes to the recipe, each as `key=value`.
        keep: Which of the generated data to keep at the end: `all` (archive and store), `store`, or `none`.
    """
    out.mkdir(parents=True, exist_ok=True)
    archive, store, report = out / "archive", out / "store.zarr", (out / "report.html").absolute()
    text = RECIPE.replace('"${STORE}"', json.dumps(str(store.absolute())))
    where: Tree = {"launch": {"storage": str(out.absolute() / "runs")}}
    tree = apply_overrides(merge(parse_tree(text, "quickstart"), where), overrides)
    recipe = validate(Recipe, tree, str(out / "recipe.yaml"))
    folder = RunFolder.of(recipe)
    if folder.refuse_others(recipe) and folder.finished() and report.exists() and not store.exists():
        console.print(f"This run is finished. Delete {out} to start again.", markup=False, soft_wrap=True)
        return report
    _make_store(archive, store, console, patches)
    console.rule("3  train: a teacher that sees place and date, a student that does not")
    write_text(out / "recipe.yaml", text)
    place = run_with_progress(console, recipe)
    console.rule("4  evaluate and report")
    for part in ("validation", "test"):
        console.print(score_table(evaluate_run(place, part), part))
    write_report([place], report)
    _clear({"all": (), "store": (archive,), "none": (archive, store)}[keep], out, console)
    return report


def _make_store(archive: Path, store: Path, console: Console, patches: int) -> None:
    """Generate a synthetic archive and convert it to a store.

    If an earlier call finished the store, and its archive was deleted, do nothing. Otherwise, do what earlier calls did
    not finish.

    Args:
        archive: Folder of the archive.
        store: Folder of the store.
        console: Console that shows progress.
        patches: Number of patches to generate.
    """
    if (store / "zarr.json").exists() and not archive.exists():
        console.print(f"The store {store} is there already.", markup=False, soft_wrap=True)
        return
    console.rule("1  a synthetic archive in the BigEarthNet v1.0 file layout")
    with counting(console, "write", "patches") as progress:
        synthesize_archive(archive, patches=patches, seed=0, progress=progress)
    console.rule("2  convert it to a Zarr store")
    with counting(console, "convert", "shards") as progress:
        summary = convert_archive("bigearthnet-v1", archive, store, Options(shard=128), progress)
    console.print(conversion_summary(summary), highlight=False, markup=False, soft_wrap=True)
    console.print(describe_store(Store.open(store)), highlight=False, markup=False, soft_wrap=True)


def _clear(unwanted: tuple[Path, ...], out: Path, console: Console) -> None:
    """Delete the generated data that the user does not want to keep. Show how much disk space the other files take.

    Args:
        unwanted: Folders to delete.
        out: Folder of all results, which has these folders.
        console: Console that shows the message.
    """
    for folder in unwanted:
        shutil.rmtree(folder, ignore_errors=True)
    left = as_size(sum(path.stat().st_size for path in out.rglob("*") if path.is_file()))
    gone = f"; deleted {' and '.join(path.name for path in unwanted)} (--keep all keeps all)" if unwanted else ""
    console.print(f"{left} in {out}{gone}", highlight=False, markup=False, soft_wrap=True)

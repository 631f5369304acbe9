"""Define the command `stssl` and its subcommands.

Each subcommand imports what it needs inside its function. Importing torch or Ray takes seconds, and `stssl --help` must
not wait for that.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from stssl import __version__
from stssl.algorithms import NAMES
from stssl.archives.formats import FORMATS
from stssl.base.errors import StsslError
from stssl.base.stopping import heeding_signals, stopped
from stssl.commands.arguments import (
    CompareCommand,
    ConvertCommand,
    ListCommand,
    VerifyCommand,
    given_options,
    local_path,
    store_place,
)


class _Commands(TyperGroup):
    """Group the subcommands of `stssl`. After Ctrl-C or a signal, show a message, as typer itself shows none."""

    def make_context(self, *given: Any, **named: Any) -> Any:
        """Parse the words of the command line.

        Raises:
            StoppedError: A signal asked the process to end.
        """
        try:
            return super().make_context(*given, **named)
        except KeyboardInterrupt:
            raise stopped() from None

    def invoke(self, ctx: Any) -> object:
        """Run the subcommand that the command line names.

        Raises:
            StoppedError: A signal asked the process to end.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise stopped() from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Land-cover classifiers from few labels and many unlabeled satellite patches.",
)
console = Console(stderr=True)
_CONTROLS = {code: "?" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Characters that could control a terminal. Messages show `?` in their place."""


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train land-cover classifiers from few labels and many unlabeled satellite patches."""


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, every default written out.")] = None,
    overrides: Overrides = None,
) -> None:
    """List the recipes and sweeps that come with the package, or print one."""
    from stssl.recipes.catalog import described_recipes, find_recipe, resolved_text

    if name is None:
        for line in described_recipes():
            print(line)
    else:
        print(resolved_text(find_recipe(name), overrides or ()), end="")


@app.command("doctor")
def doctor_command() -> None:
    """Show what this machine has: versions, CPU, GPU, Ray, free disk, and optional packages that are absent."""
    from stssl.commands.doctor import examine

    for line in examine():
        print(line)


@app.command("quickstart")
def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder that keeps everything.", callback=local_path)] = Path("quickstart"),
    patches: Annotated[int, typer.Option(min=200, help="Patches of the generated archive.")] = 4000,
    keep: Annotated[
        Literal["all", "store", "none"], typer.Option(help="What stays of the generated data: all takes 1.2 GB.")
    ] = "store",
    overrides: Overrides = None,
) -> None:
    """Run all steps on generated data: archive, store, training on two workers, evaluation, report."""
    from stssl.commands.quick_start import run_quickstart

    print(run_quickstart(out, console, patches, tuple(overrides or ()), keep))


@app.command("synthesize")
def synthesize_command(
    out: Annotated[Path, typer.Argument(help="Folder to write.", callback=local_path)],
    patches: Annotated[int, typer.Option(min=1, help="How many patches.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same bytes.")] = 0,
    locations: Annotated[
        Path | None, typer.Option(help="CSV table of places, dates and classes to copy.", callback=local_path)
    ] = None,
    confounded: Annotated[bool, typer.Option(help="Let the date depend on the country.")] = True,
    placeless: Annotated[
        bool, typer.Option("--placeless", help="Let labels depend on pixels only: place and date tell nothing.")
    ] = False,
) -> None:
    """Write a synthetic archive in the file layout of BigEarthNet v1.0."""
    from stssl.api.progress import counting
    from stssl.archives.synthetic import synthesize_archive

    with counting(console, "write", "patches") as progress:
        written = synthesize_archive(
            out, patches, seed, locations=locations, confounded=confounded, placeless=placeless, progress=progress
        )
    print(written)


@app.command("convert", cls=ConvertCommand)
def convert_command(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="NAME", help=f"{', '.join(FORMATS)}. `stssl convert NAME --help` lists its options."),
    ],
    archive: Annotated[
        list[Path], typer.Argument(help="Folder or file of the archive; several scenes.", callback=local_path)
    ],
    store: Annotated[str, typer.Argument(help="Zarr store to write: a folder or a URL.", callback=store_place)],
    codec: Annotated[str, typer.Option(help="lz4, zstd or none.")] = "lz4",
    shard: Annotated[int, typer.Option(min=1, help="Patches a shard.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first patches.")] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first bad patch.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 converts without Ray.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Cluster to convert on.")] = None,
) -> None:
    """Convert an archive to a Zarr store; the same command resumes an interrupted conversion."""
    from stssl.api.progress import conversion_summary, counting
    from stssl.archives.conversion import Options, convert_archive

    options = Options(codec=codec, shard=shard, limit=limit, strict=strict, workers=workers, address=ray_address)
    with counting(console, "convert", "shards") as progress:
        summary = convert_archive(source, archive, store, options, progress, **given_options(ctx))
    console.print(conversion_summary(summary), markup=False, soft_wrap=True)
    print(summary.store)


@app.command("verify", cls=VerifyCommand)
def verify_command(
    ctx: typer.Context,
    store: Annotated[str, typer.Argument(help="Path or URL of a store.", callback=store_place)],
    archive: Annotated[
        list[Path] | None,
        typer.Option(help="Compare pixels with this archive too; repeatable for scenes.", callback=local_path),
    ] = None,
) -> None:
    """Check a store's checksums, hashes and counts; given its archive, compare every pixel too."""
    from stssl.api.progress import counting
    from stssl.archives.conversion import verify_store

    with counting(console, "verify", "patches") as progress:
        findings = verify_store(store, archive or None, progress, **given_options(ctx))
    for line in findings.lines():
        print(line)
    compared = f", {findings.compared:,} compared with the archive" if archive else ""
    console.print(f"{findings.patches:,} patches checked{compared}: {len(findings.problems)} problems")
    raise typer.Exit(1 if findings.problems else 0)


@app.command("inspect")
def inspect_command(
    store: Annotated[str, typer.Argument(help="Path or URL of a store.", callback=store_place)],
) -> None:
    """Describe a store: counts, splits, classes, ranges of date and place, bands, size, errors."""
    from stssl.store.description import describe_store
    from stssl.store.store import Store

    print(describe_store(Store.open(store)))


@app.command("train")
def train_command(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe (see `stssl recipes`) or YAML file.", callback=local_path)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help=f"Recipe keys to change. Values of algorithm.name: {', '.join(NAMES)}."
        ),
    ] = None,
    smoke: Annotated[bool, typer.Option(help="Shrink to seconds: 4 steps, 4 labels a batch, no Ray, no hub.")] = False,
) -> None:
    """Train a recipe; the same command resumes an interrupted run."""
    from stssl.api.progress import run_with_progress
    from stssl.recipes.catalog import find_recipe
    from stssl.recipes.recipe import load_training_recipe

    print(run_with_progress(console, load_training_recipe(find_recipe(recipe), overrides or (), smoke)))


@app.command("pretrain")
def pretrain_command(
    recipe: Annotated[str, typer.Argument(help="Name of a pretraining recipe or YAML file.", callback=local_path)],
    overrides: Overrides = None,
    smoke: Annotated[bool, typer.Option(help="Shrink to seconds: 4 steps, 8 pairs a batch, no Ray, no hub.")] = False,
) -> None:
    """Pretrain a backbone without labels; training recipes start from it with model.weights=run:FOLDER."""
    from stssl.api.progress import run_with_progress
    from stssl.recipes.catalog import find_recipe
    from stssl.recipes.pretraining import PretrainRecipe
    from stssl.recipes.recipe import load_as

    print(run_with_progress(console, load_as(PretrainRecipe, find_recipe(recipe), overrides or (), smoke)))


@app.command("probe")
def probe_command(
    run: Annotated[Path | None, typer.Argument(help="Folder of a pretraining run.", callback=local_path)] = None,
    weights: Annotated[
        str | None, typer.Option(help="Instead of a run: weights, as in model.weights. Needs --store.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Store with labels, for --weights.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the scores, for --weights.", callback=local_path)] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="all, fraction=F, per-class=N or total=N; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of labels.")] = 0,
    random: Annotated[bool, typer.Option("--random", help="Probe random weights, as a control.")] = False,
    fine_tune: Annotated[bool, typer.Option("--fine-tune", help="Train the whole network too.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE of the probe; with --weights also of data and model, such as model.image_size=128."
        ),
    ] = None,
) -> None:
    """Measure how good the features of a pretrained backbone are: linear layer, k-NN or fine-tuning."""
    from stssl.api.functions import probe
    from stssl.api.progress import probe_table

    results = probe(
        run,
        labels or ["all"],
        seed,
        weights=weights,
        store=store,
        out=out,
        random=random,
        fine_tune=fine_tune,
        overrides=overrides or (),
    )
    console.print(probe_table(results.rows))
    print(results.path)


@app.command("weights")
def weights_command(
    file: Annotated[Path, typer.Argument(help="File of weights, of this or another program.", callback=local_path)],
) -> None:
    """Describe a file of weights: layout, tensors, bands, which backbones it fits, and what was not understood."""
    from stssl.api.functions import inspect_weights

    for line in inspect_weights(file).lines():
        print(line)


@app.command("sweep")
def sweep_command(
    file: Annotated[
        str, typer.Argument(help="Name of a sweep (see `stssl recipes`) or YAML file.", callback=local_path)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Sweep keys to change; change.KEY: recipe keys."),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="How many of the best trials to train again with other seeds.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds for each of these trials.")] = 5,
) -> None:
    """Search recipe keys; the same command resumes an interrupted sweep."""
    from stssl.recipes.catalog import find_recipe
    from stssl.sweeps.run import run_sweep

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    result = run_sweep(find_recipe(file), overrides or (), say, top, seeds)
    print(result.best, result.report, sep="\n")


@app.command("plan")
def plan_command(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe or YAML file.", callback=local_path)],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="Workers on each machine.")] = None,
    link: Annotated[float, typer.Option(min=0.001, help="Speed of the network in Gbit/s.")] = 10.0,
    steps: Annotated[int, typer.Option(min=1, help="How many steps to time.")] = 5,
) -> None:
    """Predict a run's time, memory and traffic from a few real steps on this machine."""
    from stssl.analysis.costs import describe_costs
    from stssl.analysis.planning import load, machines_for, plan_run
    from stssl.recipes.catalog import find_recipe

    loaded = load(find_recipe(recipe), overrides or ())
    print(describe_costs(plan_run(loaded, machines_for(loaded, nodes, gpus_per_node, link), steps)))


@app.command("submit")
def submit_command(
    file: Annotated[
        str,
        typer.Argument(
            help="Name or YAML file of a recipe or sweep, in the working folder; or predict.", callback=local_path
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Recipe keys to change. After `predict --`: words of `stssl predict`."
        ),
    ] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="URL of the cluster's job server.")
    ] = "http://127.0.0.1:8265",
    folder: Annotated[
        Path,
        typer.Option(help="Working folder, which is sent to the cluster without data and .venv.", callback=local_path),
    ] = Path(),
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE (or NAME) for the job; repeatable.")] = None,
    pip: Annotated[list[str] | None, typer.Option(help="Package or requirements file for the job.")] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="CPUs of the job's first process.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of the job's first process.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job and return its exit code.")] = True,
) -> None:
    """Run a recipe, sweep or prediction on a Ray cluster, follow its output and return its exit code."""
    from stssl.commands.submission import PREDICT, Submission, submit_job
    from stssl.recipes.catalog import find_recipe

    words = tuple(overrides or ())
    paths = _prediction_paths(words) if file == str(PREDICT) else ()
    what = PREDICT if paths else find_recipe(file)
    given = Submission(what, words, address, folder, tuple(env or ()), tuple(pip or ()), cpus, gpus, wait, paths)
    code = submit_job(
        given, lambda text: print(text, end="", flush=True), lambda line: console.print(line, markup=False)
    )
    raise typer.Exit(code)


def _prediction_paths(words: tuple[str, ...]) -> tuple[str, ...]:
    """Check the words of `stssl predict`, and return the paths of models, inputs and output in them."""
    command = typer.main.get_command(app).commands["predict"]  # type: ignore[attr-defined]  # typer makes a group
    given = command.make_context("stssl predict", list(words)).params
    found = [given[name] or () for name in ("model", "also", "scene", "inputs", "out") if name in given]
    return tuple(str(one) for value in found for one in (value if isinstance(value, list | tuple) else [value]))


@app.command("evaluate", cls=ListCommand)
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", callback=local_path)],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best or last.")] = "best",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    store: Annotated[
        str | None, typer.Option(help="Path or URL of the run's store, if it was moved.", callback=store_place)
    ] = None,
    metadata: Annotated[
        str, typer.Option(help="What networks see: true, absent, shuffled, moved:KM (moved:500km) or moved:90d.")
    ] = "true",
    by: Annotated[
        list[str] | None, typer.Option(help="Columns to score by, such as country season block month.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Draws for 95 % intervals, such as 1000; 0 for none.")] = 0,
    resample: Annotated[
        Literal["blocks", "patches"], typer.Option(help="What a draw takes: near patches together, or one by one.")
    ] = "blocks",
    degrees: Annotated[float, typer.Option(min=0.001, help="Side of a block in degrees.")] = 1.0,
    least: Annotated[int, typer.Option(min=1, help="Groups with fewer patches are pooled.")] = 30,
) -> None:
    """Score a run's networks on the test, validation or training patches, and on groups of them."""
    from stssl.api.progress import group_table, score_table
    from stssl.scoring.groups import GroupOptions
    from stssl.training.trained_run import evaluate_fully

    groups = GroupOptions(tuple(by or ()), bootstrap, least, degrees, resample) if by or bootstrap else None
    result = evaluate_fully(run, split, checkpoint, device, store, metadata=metadata, groups=groups)
    title = f"{split}, {result.patches:,} patches" + ("" if metadata == "true" else f", metadata {metadata}")
    console.print(score_table(result.scores, title))
    if result.groups:
        console.print(group_table(result.groups))
        for line in result.groups.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("compare", cls=CompareCommand)
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of evaluated runs.", callback=local_path)],
    against: Annotated[
        list[Path], typer.Option(help="Runs of one other recipe, with the same seeds.", callback=local_path)
    ],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    network: Annotated[str, typer.Option(help="student or teacher.")] = "student",
    score: Annotated[str | None, typer.Option(help="Score to compare; default: accuracy or mAP.")] = None,
    draws: Annotated[int, typer.Option(min=100, help="Draws for intervals, and swaps for p.")] = 1000,
    degrees: Annotated[float, typer.Option(min=0.001, help="Side of a block in degrees.")] = 1.0,
) -> None:
    """Compare recipes by their runs, paired over seeds and test blocks: difference, interval, p."""
    from stssl.analysis.comparison import ComparisonOptions, compare_runs
    from stssl.api.progress import comparison_table

    found = compare_runs(runs, against, ComparisonOptions(split, network, score, draws, degrees))
    console.print(comparison_table(found))


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", callback=local_path)],
    form: Annotated[
        str, typer.Option("--format", help="pt2, onnx, or torchvision (ResNets, without their head).")
    ] = "pt2",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: export in the run's folder.", callback=local_path)
    ] = None,
    bands: Annotated[str | None, typer.Option(help="Three bands for torchvision, such as B04,B03,B02.")] = None,
    license: Annotated[str | None, typer.Option(help="License of the weights, such as CC-BY-4.0.")] = None,
) -> None:
    """Write a run's student for other programs, compare it with the student, and describe it."""
    from stssl.exports.writing import export_run

    chosen = None if bands is None else [band.strip() for band in bands.split(",")]
    print(export_run(run, form, out, bands=chosen, license=license))


Windows = Annotated[int | None, typer.Option(help="Distance of a scene's windows in pixels.")]
Bands = Annotated[str, typer.Option(help="Names of the files' bands, as B02,B03,...")]
Resample = Annotated[bool, typer.Option("--resample", help="Accept another pixel size or patch size.")]
AtATime = Annotated[int, typer.Option(min=1, help="Windows or patches that a model sees at a time.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="GeoTIFFs of a scene, a .SAFE folder, a store, a table, folder or pattern of images."
    ),
]


@app.command("predict")
def predict_command(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or a student's file.", callback=local_path)],
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Map (.tif) or table (.parquet) to write.", callback=local_path)],
    also: Annotated[
        list[Path] | None,
        typer.Option("--model", help="Further model of an ensemble; repeatable.", callback=local_path),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Label set to score a table against; default: found.")] = None,
    stride: Windows = None,
    bands: Bands = "",
    probabilities: Annotated[
        Literal["uint8", "float32"] | None, typer.Option(help="Write maps of each class's probability, as this type.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Write a PNG beside the map too.")] = False,
    resample: Resample = False,
    pixel_size: Annotated[
        float | None, typer.Option(min=0.01, help="Meters a pixel of the training images, if the student has no size.")
    ] = None,
    batch: AtATime = 64,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Ray tasks at the same time; 0: this process.")] = 0,
    ray_address: Annotated[str | None, typer.Option(help="Cluster to predict on.")] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a Ray task, such as 0.25.")] = 0.0,
) -> None:
    """Map a scene, or write a table of patches, by a trained student; the same command resumes a map."""
    from stssl.api.progress import counting, score_table
    from stssl.mapping.prediction import MapOptions
    from stssl.predictions.choice import predict_inputs, unit_of

    options = MapOptions(stride, _named(bands), resample, pixel_size, probabilities, preview, batch, device)
    options = replace(options, workers=workers, address=ray_address, gpus=gpus)
    with counting(console, "predict", unit_of(inputs, out)) as progress:
        found = predict_inputs([model, *(also or ())], inputs, out, options, labels=labels, progress=progress)
    for line in found.lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.scores:
        console.print(score_table({"student": found.scores}, "patches with a label"))
    print(found.path)


@app.command("embed")
def embed_command(
    model: Annotated[Path, typer.Argument(help="A run, a student or a pretrained encoder.", callback=local_path)],
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Table (.parquet) or Zarr group (.zarr) to write.", callback=local_path)],
    stride: Windows = None,
    bands: Bands = "",
    resample: Resample = False,
    batch: AtATime = 64,
    device: Device = "auto",
) -> None:
    """Write the features of patches: what the last layer of a student or pretrained encoder sees."""
    from stssl.api.progress import counting
    from stssl.predictions.embedding import embed_patches
    from stssl.predictions.predicted_table import PatchOptions

    options = PatchOptions(_named(bands), None, resample, stride, batch, device)
    with counting(console, "embed", "patches") as progress:
        found = embed_patches(model, inputs, out, options, progress)
    for line in found.notes:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{found.patches:,} patches, {found.width} features, {found.failed:,} patches cannot be used")
    print(found.path)


def _named(bands: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in bands.split(",") if name.strip())


@app.command("report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", callback=local_path)],
    out: Annotated[Path, typer.Option(help="HTML file to write.", callback=local_path)] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs: recipes, curves, scores, classes, maps."""
    from stssl.analysis.report import write_report

    print(write_report(runs, out))


def main() -> None:
    """Run the command line. After a user's mistake, show a message without a traceback, and exit with code 2."""
    try:
        with heeding_signals():
            app()
    except StsslError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error).translate(_CONTROLS), markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # An error that names no file is a defect of the program, not a wrong path: show the traceback.
        if error.filename is None:
            raise
        console.print(f"cannot use {error.filename}: {error.strerror}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

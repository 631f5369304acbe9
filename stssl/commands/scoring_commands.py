"""Define the subcommands that score and describe runs and weights.

Each subcommand imports what it needs inside its function, so that `stssl --help` stays fast.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from stssl.commands.arguments import result_path, run_place, store_place
from stssl.commands.terminal import console, say


def probe_command(
    run: Annotated[str | None, typer.Argument(help="Path or URL of a pretraining run.", callback=run_place)] = None,
    weights: Annotated[
        str | None, typer.Option(help="Instead of a run: weights, as in model.weights. Needs --store.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Store with labels, for --weights.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the scores, for --weights.", callback=result_path)] = None,
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
    from stssl.api import probe
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


def weights_command(
    file: Annotated[str, typer.Argument(help="File of weights, run's folder, or a value of model.weights.")],
) -> None:
    """Describe a file of weights: layout, tensors, bands, which backbones it fits, and what was not understood."""
    from stssl.api import inspect_weights

    console.print("Comparing names and shapes of the tensors with networks...", highlight=False)
    for line in inspect_weights(file).lines():
        print(line)


def evaluate_command(
    run: Annotated[str, typer.Argument(help="Path or URL of a run.", callback=run_place)],
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
    workers: Annotated[int, typer.Option(min=0, help="Ray workers that predict; 0 predicts in this process.")] = 0,
) -> None:
    """Score a run's networks on the test, validation or training patches, and on groups of them."""
    from stssl.api.progress import group_table, score_table
    from stssl.scoring.groups import GroupOptions
    from stssl.training.evaluation_tasks import predict_on_ray
    from stssl.training.trained_run import evaluate_fully

    groups = GroupOptions(tuple(by or ()), bootstrap, least, degrees, resample) if by or bootstrap else None
    elsewhere = predict_on_ray(workers) if workers else None
    result = evaluate_fully(
        run, split, checkpoint, device, store, metadata=metadata, groups=groups, elsewhere=elsewhere
    )
    title = f"{split}, {result.patches:,} patches" + ("" if metadata == "true" else f", metadata {metadata}")
    console.print(score_table(result.scores, title))
    if result.groups:
        console.print(group_table(result.groups))
        for line in result.groups.lines():
            say(line)


def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Paths or URLs of evaluated runs.", callback=run_place)],
    against: Annotated[
        list[str], typer.Option(help="Runs of one other recipe, with the same seeds.", callback=run_place)
    ],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    network: Annotated[str, typer.Option(help="student or teacher.")] = "student",
    score: Annotated[str | None, typer.Option(help="Score to compare; default: accuracy or mAP.")] = None,
    draws: Annotated[int, typer.Option(min=100, help="Draws for intervals, and swaps for p.")] = 1000,
    degrees: Annotated[float, typer.Option(min=0.001, help="Side of a block in degrees.")] = 1.0,
) -> None:
    """Compare scores of recipes with those of another, paired over seeds and test blocks: difference, interval, p."""
    from stssl.analysis.comparison import ComparisonOptions, compare_runs
    from stssl.api.progress import comparison_table

    found = compare_runs(runs, against, ComparisonOptions(split, network, score, draws, degrees))
    console.print(comparison_table(found))


def report_command(
    runs: Annotated[list[str], typer.Argument(help="Paths or URLs of runs.", callback=run_place)],
    out: Annotated[Path, typer.Option(help="HTML file to write.", callback=result_path)] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs: recipes, curves, scores, classes, maps."""
    from stssl.analysis.report import write_report

    print(write_report(runs, out))

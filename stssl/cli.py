"""The command `stssl`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stssl.errors import StsslError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Land-cover classifiers from few labels and many unlabeled satellite patches.",
)
console = Console(stderr=True)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change.")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Overrides = None,
    smoke: Annotated[bool, typer.Option(help="Shrink to seconds: 4 steps, 4 labels a batch, no Ray, no hub.")] = False,
) -> None:
    """Train a recipe; the same command goes on with a run that was interrupted."""
    from stssl.progress import training_progress
    from stssl.recipe import load_recipe
    from stssl.train.folder import RunFolder
    from stssl.train.launch import run

    loaded = load_recipe(recipe, overrides or (), smoke)
    done = RunFolder.of(loaded).finished()
    if done:
        console.print(f"This run is finished: {done['steps']} steps, best validation score {done['best']:.4f}.")
    else:
        with training_progress(console, loaded.schedule.steps) as watch:
            run(loaded, watch)
    print(RunFolder.of(loaded).path)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best or last.")] = "best",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Score a run's student (and teacher) on a part of its split."""
    from stssl.progress import score_table
    from stssl.train.finished import evaluate_run

    results = evaluate_run(run, split, checkpoint, device)
    console.print(score_table(results, split))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs: recipes, curves, scores, classes, maps."""
    from stssl.report import write_report

    print(write_report(runs, out))


def main() -> None:
    """Run the command line; a user's mistake ends with its message and exit code 2, without a traceback."""
    try:
        app()
    except StsslError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

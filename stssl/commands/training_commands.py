"""Define the subcommands that list recipes, train and pretrain by them, and search, study, plan and submit them.

Each subcommand imports what it needs inside its function, so that `stssl --help` stays fast.
"""

from pathlib import Path
from typing import Annotated

import typer

from stssl.algorithms import NAMES
from stssl.commands.arguments import Overrides, local_path
from stssl.commands.student_commands import predict_command
from stssl.commands.terminal import console, say


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
    """Search the best values of recipe keys by many runs; the same command resumes an interrupted sweep."""
    from stssl.recipes.catalog import find_recipe
    from stssl.sweeps.run import run_sweep

    result = run_sweep(find_recipe(file), overrides or (), say, top, seeds)
    print(result.best, result.report, sep="\n")


def shift_command(
    recipe: Annotated[str, typer.Argument(help="Name or YAML file of a recipe with a teacher.", callback=local_path)],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; one gives no intervals.")] = 5,
    splits: Annotated[
        list[str] | None,
        typer.Option(help="random, blocks, longitude, country, season, country:Serbia; default: those possible."),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="At test: true, absent, shuffled, moved:500km, moved:90d.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; default: shifts/RECIPE.", callback=local_path)
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say the runs and their cost, and stop.")] = False,
    degrees: Annotated[float, typer.Option(min=0.001, help="Side of a block of the intervals in degrees.")] = 1.0,
    draws: Annotated[int, typer.Option(min=100, help="Draws for intervals, and swaps for p.")] = 1000,
    score: Annotated[
        str | None, typer.Option(help="Score of the claims, such as loss, F1 or mAP_micro; default: accuracy or mAP.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Runs at the same time; 0: this process, without Ray.")
    ] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of a run, such as 0.25.")] = None,
) -> None:
    """Study how much place and date help networks, also in new regions and seasons; the same command resumes."""
    from stssl.api.progress import counting
    from stssl.recipes.catalog import find_recipe
    from stssl.recipes.recipe import load_training_recipe
    from stssl.shifts.run import plan_shift, run_shift
    from stssl.shifts.settings import ShiftOptions

    loaded = load_training_recipe(find_recipe(recipe), overrides or ())
    asked, changes = (None if words is None else tuple(words) for words in (splits, metadata))
    options = ShiftOptions(seeds, asked, changes, degrees, draws, score)
    if plan:
        print(plan_shift(loaded, options, out))
        return

    with counting(console, "study", "runs") as progress:
        found = run_shift(loaded, options, say, out, workers=workers, gpus=gpus, progress=progress)
    for sentence in found.claims.values():
        say(sentence)
    print(found.report)


def plan_command(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe or sweep, or YAML file.", callback=local_path)],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="Workers on each machine.")] = None,
    link: Annotated[float, typer.Option(min=0.001, help="Speed of the network in Gbit/s.")] = 10.0,
    steps: Annotated[int, typer.Option(min=1, help="How many steps to time.")] = 5,
) -> None:
    """Predict a run's time, memory and traffic from a few real steps on this machine."""
    from stssl.analysis.costs import describe_costs
    from stssl.analysis.planning import load, machines_for, plan_run
    from stssl.base.config import load_tree
    from stssl.base.logs import shown_messages
    from stssl.recipes.catalog import find_recipe
    from stssl.sweeps.keeping import room_line
    from stssl.sweeps.spec import load_sweep

    file = find_recipe(recipe)
    sweep = load_sweep(file, overrides or ()) if "search" in load_tree(file) else None
    loaded = sweep.recipe if sweep else load(file, overrides or ())
    with shown_messages(say):
        found = plan_run(loaded, machines_for(loaded, nodes, gpus_per_node, link), steps)
    print(describe_costs(found))
    if sweep:
        print(f"the sweep    {room_line(sweep, found.checkpoint, sweep.config.concurrent or 1)}")


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
    paths, tasks = _prediction(words) if file == str(PREDICT) else ((), False)
    what = PREDICT if paths else find_recipe(file)
    given = Submission(what, words, address, folder, tuple(env or ()), tuple(pip or ()), cpus, gpus, wait, paths, tasks)
    raise typer.Exit(submit_job(given, lambda text: print(text, end="", flush=True), say))


def _prediction(words: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """Check the words after `stssl predict`. Return all paths in them, and True if Ray tasks compute the prediction."""
    predict = typer.Typer(add_completion=False)
    predict.command()(predict_command)
    given = typer.main.get_command(predict).make_context("stssl predict", list(words)).params
    paths = (given["model"], *(given["also"] or ()), *given["inputs"], given["out"])
    return paths, given["workers"] > 0 or given["ray_address"] is not None

"""Score, compare and probe runs, describe weights, and write reports."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stssl.api.run import Run, RunScores, folder_of_run
from stssl.base.errors import ConfigError

if TYPE_CHECKING:
    from stssl.analysis.comparison import Difference
    from stssl.analysis.probe import Probed
    from stssl.analysis.weight_report import InspectedWeights


def evaluate(
    run: Run | str | Path,
    part: str = "test",
    *,
    checkpoint: str = "best",
    device: str = "auto",
    store: str | None = None,
    metadata: str = "true",
    by: Sequence[str] = (),
    bootstrap: int = 0,
    resample: Literal["blocks", "patches"] = "blocks",
    degrees: float = 1.0,
    least: int = 30,
    workers: int = 0,
) -> RunScores:
    """Score a run's networks on a part of its split, and write the scores into its folder.

    Args:
        run: A run or its folder.
        part: `train`, `validation` or `test`.
        checkpoint: `best` or `last`.
        device: `cpu`, `cuda` or `auto`.
        store: Path of the run's store, if the store was moved after training.
        metadata: Metadata that the networks get: `true`, `absent`, `shuffled`, `moved:500km` or `moved:90d`.
        by: Columns of the store, such as `country` and `season`. Patches with the same value in a column make a group.
            `block` makes squares of latitude and longitude, `month` the months of the year. `Run.groups` reads the
            scores of groups.
        bootstrap: Number of bootstrap draws for the 95 % intervals of `Run.groups`; 0 computes no intervals.
        resample: `blocks` draws squares of nearby patches, `patches` draws single ones.
        degrees: Side of these squares in degrees.
        least: Groups with fewer patches than this number are pooled into one group, `others`.
        workers: Number of Ray workers that predict; 0 predicts in this process.

    Returns:
        Scores by network (`student`, `teacher`) and name, such as `scores["student"]["accuracy"]`. If a patch has one
        class, they include `accuracy`, else `mAP`. Scores are from 0 to 1, except `loss`, in nats. NaN means that a
        score is not defined.

    Raises:
        StsslError: The run, the part or the checkpoint does not exist, or the store has changed since training. Or the
            store lacks a column of `by`, no network sees the metadata to change, or there are too few blocks.
    """
    from stssl.scoring.groups import GroupOptions
    from stssl.training.evaluation_tasks import predict_on_ray
    from stssl.training.trained_run import evaluate_fully

    groups = GroupOptions(tuple(by), bootstrap, least, degrees, resample) if by or bootstrap else None
    elsewhere = predict_on_ray(workers) if workers else None
    found = evaluate_fully(
        folder_of_run(run), part, checkpoint, device, store, metadata=metadata, groups=groups, elsewhere=elsewhere
    )
    return found.scores


def compare(
    runs: Sequence[Run | str | Path],
    against: Sequence[Run | str | Path],
    part: str = "test",
    *,
    network: str = "student",
    score: str | None = None,
    draws: int = 1000,
    degrees: float = 1.0,
) -> "list[Difference]":
    """Compare recipes by the scores of their evaluated runs, with intervals and p-values.

    Runs of two recipes with the same seed form a pair, and are compared on the same blocks of nearby patches.

    Args:
        runs: Runs or their folders, of one or several recipes. Runs of one recipe differ only in seeds.
        against: Runs of one other recipe, with the same seeds.
        part: `train`, `validation` or `test`.
        network: `student` or `teacher`.
        score: Name of the score; None takes `accuracy` or `mAP`.
        draws: Number of bootstrap draws for the 95 % intervals, and of random swaps for the p-values.
        degrees: Side of a block of patches in degrees.

    Returns:
        One entry for each recipe of `runs`, which compares it with `against`. It has the mean scores `value` and
        `other`, their `difference`, the ends `low` and `high` of its 95 % interval, `p` by permutation, `holm` (p
        corrected for several recipes) and `significant`.

    Raises:
        StsslError: A run was not evaluated, or the runs have other stores, splits, classes or seeds.
    """
    from stssl.analysis.comparison import ComparisonOptions, compare_runs

    own, others = ([folder_of_run(run) for run in group] for group in (runs, against))
    return compare_runs(own, others, ComparisonOptions(part, network, score, draws, degrees))


def probe(
    run: Run | str | Path | None = None,
    labels: Sequence[str] = ("all",),
    seed: int = 0,
    *,
    weights: str | None = None,
    store: str | Path | None = None,
    out: str | Path | None = None,
    random: bool = False,
    fine_tune: bool = False,
    overrides: Iterable[str] = (),
) -> "Probed":
    """Measure how good the features of a pretrained backbone are: classify patches by a linear layer and by k-NN.

    Args:
        run: A pretraining run or its folder. Leave it out if you give `weights`.
        labels: Number of labels of each probe: `all`, `fraction=F`, `per-class=N` or `total=N`.
        seed: Seed that chooses the labeled patches at random.
        weights: Weights to probe without a run, as in the recipe key `model.weights`. Needs `store`.
        store: Path or URL of a store with labels, for `weights`.
        out: File of the scores, for `weights`. The default is `probe-<backbone>-<number>-s<seed>.json`, in the current
            folder. The number differs if the store, the weights, the labels or a setting differ.
        random: True probes random weights, for comparison. This needs a run.
        fine_tune: True also trains the whole network. This needs a run.
        overrides: Changes of the probe's own settings, such as `"epochs=50"`. With `weights`, also changes of the
            recipe's data and network, such as `"model.image_size=128"`.

    Returns:
        An object with two fields. `rows` is a list of dicts, one for each number of labels and method (`linear`,
        `k-NN`, `fine-tune`). Their keys are `weights`, `method`, `labels`, `labeled` (number of labeled patches), and
        `validation` and `test` with scores by name, from 0 to 1. `path` is the file with these rows.

    Raises:
        StsslError: The folder has no pretraining run, the run has no checkpoint, the weights do not exist, or the store
            has no labels.
    """
    if weights is not None:
        from stssl.analysis.weights_probe import probe_weights

        if run is not None or store is None or random or fine_tune:
            raise ConfigError("probe: weights need a store, and go with no run, no random and no fine-tuning")
        target = None if out is None else Path(out)
        return probe_weights(weights, str(store), labels, seed, overrides=overrides, out=target)
    from stssl.analysis.probe import probe_run

    if run is None or store is not None or out is not None:
        raise ConfigError("probe: give the folder of a pretraining run, or weights and a store")
    return probe_run(folder_of_run(run), labels, seed, random=random, fine_tune=fine_tune, overrides=overrides)


def inspect_weights(file: str | Path) -> "InspectedWeights":
    """Describe a file of weights that this or another program wrote. Run no code that the file contains.

    Args:
        file: File of weights. The page of the recipe key `model.weights` lists the formats that can be read. Or a
            run's folder, or a value of `model.weights` that names a file, such as `package:NAME`.

    Returns:
        An object with the layout, the size, the bands, the backbones that the weights fit, and what was not understood.
        Its method `lines()` returns all this as lines of text.

    Raises:
        ConfigError: The file cannot be read, or it holds no network.
    """
    from stssl.analysis.weight_report import report_of_weights

    return report_of_weights(file)


def report(runs: Sequence[Run | str | Path], out: str | Path = "report.html") -> Path:
    """Write one HTML page about runs, with scores, curves, classes, maps of errors, and recipes.

    Args:
        runs: Runs or their folders.
        out: File to write.

    Returns:
        Absolute path of the page.

    Raises:
        StsslError: No folder has an evaluated training run, or the page cannot be written.
    """
    from stssl.analysis.report import write_report

    return write_report([folder_of_run(run) for run in runs], Path(out))

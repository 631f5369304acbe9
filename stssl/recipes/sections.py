"""Describe the sections of a recipe: data, model, batch sizes, evaluation, arithmetic, machines, logging."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stssl.base.config import (
    BatchSize,
    Config,
    Domain,
    ImageSize,
    Positive,
    Threads,
    config_types,
    part_name,
)
from stssl.base.json_types import JsonObject
from stssl.base.paths import ColumnName, Folder, Location, StorePlace, Tracking, Weights
from stssl.data.splits import SplitConfig
from stssl.models import EncoderConfig, InjectionConfig

MetadataUse = Literal["none", "teacher", "direct"]
"""Networks that see metadata: none of them, the teacher alone, or the one network that is trained."""


class DataConfig(Config):
    """Choose patches, bands and labels.

    Attributes:
        store: Path or URL of the Zarr store.
        split: How patches are divided into training, validation and test.
        bands: Names of the bands, in the order of the images' channels.
        labels: Name of the store's label set.
        exclude: Columns of the store; patches that are marked in one of them are left out of all parts.
        scale: `sigmas` subtracts each band's mean and divides by its deviation, `bytes` divides 8-bit bands by 255.
        cache: Memory that holds decoded pixels: `host`, `device`, or `none` to read them from the store each time.
        cache_dir: Folder on each node for shards of a store in an object store (`s3://...`); None chooses one.
        cache_bytes: Largest size of that folder.
        shuffle_shards: Number of such shards whose patches are mixed; 0 delivers one shard after the other.
    """

    store: StorePlace
    split: SplitConfig = "official"
    bands: Annotated[tuple[str, ...], Field(min_length=1)] = ("B04", "B03", "B02")
    labels: str = "labels_43"
    exclude: tuple[ColumnName, ...] = ()
    scale: Literal["sigmas", "bytes"] = "sigmas"
    cache: Literal["none", "host", "device"] = "none"
    cache_dir: Location | None = None
    cache_bytes: Positive = 50_000_000_000
    shuffle_shards: Annotated[int, Field(ge=0)] = 8


class BackboneConfig(Config):
    """Configure a backbone.

    Attributes:
        backbone: Name of a timm model.
        backbone_args: Further arguments of the model's constructor.
        image_size: Side of its square images in pixels; patches of other sizes are resized.
        weights: Initial weights: `none` (random), `imagenet`, `file:PATH`, or `run:NAME` of a finished run.
    """

    backbone: str
    backbone_args: JsonObject = Field(default_factory=dict)
    image_size: ImageSize = 128
    weights: Weights = "none"


class ModelConfig(BackboneConfig):
    """Configure the networks of a training run, and how metadata enters them.

    Attributes:
        metadata: Networks that see metadata. `teacher` trains a second network that sees it and makes pseudo-labels.
        encoder: How place and date become numbers.
        injection: Where these numbers enter the network.
    """

    metadata: MetadataUse = "none"
    encoder: EncoderConfig = Field(default_factory=lambda: _default(EncoderConfig, "raw"), discriminator="name")
    injection: InjectionConfig = Field(default_factory=lambda: _default(InjectionConfig, "token"), discriminator="name")


class BatchConfig(Config):
    """Set the global batch sizes.

    Attributes:
        labeled: Labeled patches in a step, over all ranks.
        unlabeled_ratio: Unlabeled patches for each labeled one.
        micro: Most labeled patches that a rank passes through the networks at once; a larger share of the batch is
            divided into micro-batches. None never divides.
    """

    labeled: BatchSize = 64
    unlabeled_ratio: Annotated[int, Field(ge=0, le=1024)] = 7
    micro: Positive | None = None


class EmaConfig(Config):
    """Configure the exponential moving average of weights that is evaluated and shipped.

    Attributes:
        decay: Share of the old average that each step keeps.
    """

    decay: Annotated[float, Field(ge=0, lt=1), Domain(0.99, 0.9999)] = 0.999


class EvaluationConfig(Config):
    """Configure how networks are scored on a part of the split.

    Attributes:
        batch: Patches in a batch.
        limit: Most patches that a validation scores; None scores all.
        batchnorm_batches: Training batches from which BatchNorm statistics of averaged weights are estimated.
    """

    batch: Positive = 256
    limit: Positive | None = None
    batchnorm_batches: Annotated[int, Field(ge=0)] = 20


class ComputeConfig(Config):
    """Configure how a step computes; results change by rounding only.

    Attributes:
        precision: Floating-point format of the networks' arithmetic; weights are always fp32.
        threads: CPU threads of each process; None leaves PyTorch's default.
        compile: True to let torch.compile fuse the networks' blocks.
        nonfinite_steps: Steps that may be left out because their gradients are not finite; more of them end the run.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    threads: Threads | None = None
    compile: bool = False
    nonfinite_steps: Annotated[int, Field(ge=0)] = 10


class LaunchConfig(Config):
    """Place a run on machines.

    Attributes:
        workers: Ray workers, one rank each. 0 trains in this process without Ray; `[2, 8]` lets Ray resize the group.
        gpus_per_worker: GPUs of each worker.
        cpus_per_worker: CPUs of each worker.
        storage: Folder of all runs, which all nodes must see.
        max_failures: Times that Ray restarts failed workers; -1 is without end.
        placement: Ray's placement strategy for workers on nodes.
        address: Address of the Ray cluster; None starts Ray on this machine.
        collective_timeout_s: Seconds after which ranks that wait for each other give up.
        elastic_interval_s: Seconds between Ray's looks for nodes that a group of changing size could use.
        nodes_timeout_s: Seconds that a cluster which adds nodes by itself may take to bring those that lack.
    """

    workers: Annotated[int, Field(ge=0)] | tuple[Positive, Positive] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    storage: Folder = "runs"
    max_failures: Annotated[int, Field(ge=-1)] = 3
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    address: str | None = None
    collective_timeout_s: Positive = 1800
    elastic_interval_s: Positive = 60
    nodes_timeout_s: Annotated[int, Field(ge=0)] = 0


class LoggingConfig(Config):
    """Configure where metrics are written, besides `metrics.jsonl` in the run's folder.

    Attributes:
        every: Steps whose means make one row.
        tensorboard: True to write TensorBoard event files.
        mlflow: Tracking URI of MLflow (needs `pip install 'stssl[mlflow]'`); None writes none.
    """

    every: Positive = 50
    tensorboard: bool = True
    mlflow: Tracking | None = None


def _default(union: object, name: str) -> Any:
    """Build the member called `name` of a union of configurations, with its defaults."""
    return next(part for part in config_types(union) if part_name(part) == name)()

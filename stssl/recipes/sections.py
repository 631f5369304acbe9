"""Define the sections of a recipe: data, model, batch sizes, evaluation, computing, machines, logging."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stssl.base.config import (
    BatchSize,
    Config,
    Domain,
    ImageSize,
    Positive,
    Switch,
    Threads,
    config_types,
    part_name,
)
from stssl.base.json_types import JsonObject
from stssl.base.paths import ColumnName, Folder, Location, StorePlace, Tracking, Weights, Word
from stssl.data.resizing import Resize
from stssl.data.splits import SplitConfig
from stssl.models import EncoderConfig, Head, InjectionConfig
from stssl.models.weight_bands import BandsMissing
from stssl.steps.teacher_student import LabelerMode

MetadataUse = Literal["none", "teacher", "direct"]
"""Which networks see metadata: `none`, only the `teacher`, or the single trained network (`direct`)."""


class DataConfig(Config):
    """Choose the store of a run, and which of its patches, bands and labels the run uses.

    Attributes:
        store: Path or URL of the Zarr store.
        split: How to divide patches into training, validation and test. `official` is the division that came with the
            archive, or the column `split` of your manifest. A store may have more such splits.
        bands: Names of the bands, in the sequence of the images' channels. Numbers are names too: `[1,2,3]`.
        labels: Name of the store's label set.
        exclude: Columns of the store. A patch that one of them marks is left out of all parts.
        scale: `sigmas` subtracts each band's mean and divides by its standard deviation. `bytes` divides 8-bit bands by
            255.
        resize: How to change the size of images. `centers` resizes the stored values, and the centers of pixels keep
            their places. `corners` scales and clips first, and the outermost pixels keep their places. `pillow` gives
            Pillow's bytes, and needs the scale `bytes`. All are bilinear; only `corners` never antialiases.
        statistics: Source of means and standard deviations: `store` (the training patches of the store), or `published`
            (constants of the makers of BigEarthNet, which the store holds too).
        mean: Numbers to subtract from the stored values, one for each band. With `std`, they replace `scale`, and the
            scaling of known weights. Networks see (value - mean) / std.
        std: Numbers to divide by, one for each band.
        cache: Memory for decoded pixels: `host` (one copy for all ranks of a machine) or `device`. `none` reads them
            from the store each time.
        cache_dir: Folder on each node for shards that come from an object store (`s3://...`); None chooses a folder.
        cache_bytes: Largest size of that folder in bytes.
        shuffle_shards: Number of shards (files of many patches) whose patches are mixed, if the store lies in an object
            store. 0 reads shard after shard.
        threads: Number of threads with which each rank reads patches. None takes the cores of the machine, divided by
            its ranks, and 16 at most. More threads help if each read waits long, as on network disks.
    """

    store: StorePlace
    split: SplitConfig = "official"
    bands: Annotated[tuple[Word, ...], Field(min_length=1)] = ("B04", "B03", "B02")
    labels: str = "labels_43"
    exclude: tuple[ColumnName, ...] = ()
    scale: Literal["sigmas", "bytes"] = "sigmas"
    resize: Resize = "centers"
    statistics: Literal["store", "published"] = "store"
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    cache: Literal["none", "host", "device"] = "none"
    cache_dir: Location | None = None
    cache_bytes: Positive = 50_000_000_000
    shuffle_shards: Annotated[int, Field(ge=0)] = 8
    threads: Threads | None = None

    @model_validator(mode="after")
    def _resizable(self) -> "DataConfig":
        if self.resize == "pillow" and self.scale != "bytes":
            raise ValueError(
                "resize is pillow, which resizes bytes: set scale to bytes, or resize to centers or corners"
            )
        return self

    @model_validator(mode="after")
    def _numbers_for_each_band(self) -> "DataConfig":
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or none")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != len(self.bands):
                raise ValueError(
                    f"{name} has {len(values)} numbers for {len(self.bands)} bands ({', '.join(self.bands)})"
                )
        return self


class BackboneConfig(Config):
    """Choose the backbone (the image network), its input size and its initial weights.

    Attributes:
        backbone: Name of a timm model, or `slim_resnet`.
        backbone_args: Further arguments of the model's constructor.
        image_size: Width and height of the input images in pixels. Patches of other sizes are resized.
        weights: Initial weights: `none` (random), `imagenet` (timm's hub), `timm:TAG` for others of the hub,
            `hf:REPO[/FILE]` (Hugging Face), `package:NAME` (in an installed package), `file:PATH`, or `run:NAME` for
            those of a finished run.
        weights_bands: Bands that the weights were trained on, in the order of their first layer, by the store's names.
            None if the weights are known or say it themselves.
        bands_missing: First-layer kernels for bands that the weights lack: `zero`, or the `mean` of their kernels (all
            kernels are then scaled by the number of the weights' bands divided by that of the images). None refuses
            such bands.
    """

    backbone: str
    backbone_args: JsonObject = Field(default_factory=dict)
    image_size: ImageSize = 128
    weights: Weights = "none"
    weights_bands: Annotated[tuple[Word, ...], Field(min_length=1)] | None = None
    bands_missing: BandsMissing | None = None


class ModelConfig(BackboneConfig):
    """Configure the networks of a training run, and how metadata enters them.

    Attributes:
        freeze: True never changes the backbone, neither its weights nor its BatchNorm statistics. Only the head and the
            layers for metadata learn.
        head: First weights of the head, the output layer. `new` starts from zero if `weights` are given, else at
            random. `weights` reads the head from the file of `weights`, which must be a student of the same classes.
        metadata: Which networks see metadata. `teacher` trains a second network, which sees it and makes pseudo-labels.
        encoder: How place and date become a vector.
        injection: Where this vector enters the network.
        labeler_mode: Mode in which the network that makes pseudo-labels predicts weak views, and the blank image of
            CDMAD. In `training` mode, drop path and dropout are active, and BatchNorm normalizes by the batch.
    """

    freeze: Switch = False
    head: Head = "new"
    metadata: MetadataUse = "none"
    encoder: EncoderConfig = Field(default_factory=lambda: _default(EncoderConfig, "raw"), discriminator="name")
    injection: InjectionConfig = Field(default_factory=lambda: _default(InjectionConfig, "token"), discriminator="name")
    labeler_mode: LabelerMode = "evaluation"


class BatchConfig(Config):
    """Set how many labeled and unlabeled patches a training step uses.

    Attributes:
        labeled: Number of labeled patches in a step, over all ranks.
        unlabeled_ratio: Number of unlabeled patches for each labeled patch.
        micro: Largest number of labeled patches that a rank passes through the networks at once. If its share of the
            batch is larger, the rank divides it into micro-batches. None never divides.
    """

    labeled: BatchSize = 64
    unlabeled_ratio: Annotated[int, Field(ge=0, le=1024)] = 7
    micro: Positive | None = None


class EmaConfig(Config):
    """Configure the exponential moving average of weights. This average is evaluated and shipped.

    Attributes:
        decay: Share of the old average that each step keeps.
    """

    decay: Annotated[float, Field(ge=0, lt=1), Domain(0.99, 0.9999)] = 0.999


class EvaluationConfig(Config):
    """Configure how to score networks on the training, validation or test patches.

    Attributes:
        batch: Number of patches in a batch.
        limit: Largest number of patches that a validation scores; None scores all.
        checkpoint: Checkpoint that is the run's result: the `best` on validation, or the `last` one. With `last`, the
            split may lack a validation part.
        batchnorm_batches: Number of training batches for new BatchNorm statistics, which averaged weights need.
    """

    batch: Positive = 256
    limit: Positive | None = None
    checkpoint: Literal["best", "last"] = "best"
    batchnorm_batches: Annotated[int, Field(ge=0)] = 20

    @property
    def validated(self) -> bool:
        """Return True if the split must have a validation part, because its scores choose the best checkpoint."""
        return self.checkpoint == "best"


class ComputeConfig(Config):
    """Configure how a step computes. These settings change results only by rounding.

    Attributes:
        precision: Number format for computing in the networks. Weights are always fp32. `auto` takes bf16 if all
            devices have instructions for it (AVX-512 bf16, AMX, GPU), else fp32; a resumed run keeps its first choice.
            On CPUs, networks with depthwise convolutions, such as EfficientNet, are slower in bf16.
        threads: Number of CPU threads of each process; None keeps PyTorch's default.
        compile: True to compile the networks' blocks with torch.compile. `reduce-overhead` also records their work on a
            GPU as CUDA graphs: the CPU then starts fewer kernels, and the GPU needs more memory.
        nonfinite_steps: Number of steps that may be skipped because a gradient is not finite. More of them end the run.
    """

    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    threads: Threads | None = None
    compile: bool | Literal["reduce-overhead"] = False
    nonfinite_steps: Annotated[int, Field(ge=0)] = 10

    @property
    def graphs(self) -> bool:
        """Return True if compiled blocks record their work on a GPU as CUDA graphs."""
        return self.compile == "reduce-overhead"


class LaunchConfig(Config):
    """Set how many processes train a run, what resources each gets, and where the run is stored.

    Attributes:
        workers: Number of Ray workers, one for each rank. 0 trains in this process without Ray. `[2, 8]` lets Ray use 2
            to 8 workers and change their number during the run.
        gpus_per_worker: Number of GPUs for each worker.
        cpus_per_worker: Number of CPUs for each worker.
        storage: Folder of all runs, which all nodes must see, or a URL such as `s3://BUCKET/runs`.
        max_failures: How often Ray restarts failed workers; -1 sets no limit.
        placement: Ray's strategy to place workers on nodes.
        address: Address of the Ray cluster; None starts Ray on this machine.
        collective_timeout_s: Seconds that a rank waits for the other ranks before it gives up.
        elastic_interval_s: Seconds between two checks for new nodes, if the number of workers may change.
        nodes_timeout_s: Seconds to wait for missing nodes, if the cluster adds nodes by itself.
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
    """Configure where to write metrics. The file `metrics.jsonl` in the run's folder always gets them.

    Attributes:
        every: Number of steps for each logged row. The row has the means of the metrics over these steps.
        tensorboard: True to write TensorBoard event files.
        mlflow: Tracking URI of MLflow (needs `pip install 'stssl[mlflow]'`); None writes nothing to MLflow.
    """

    every: Positive = 50
    tensorboard: bool = True
    mlflow: Tracking | None = None


def _default(union: object, name: str) -> Any:
    """Return a section of a recipe, such as `model.injection`, with default values.

    Args:
        union: Type annotation that joins the section's settings classes, one for each kind.
        name: Name of the kind, such as `token`.
    """
    return next(part for part in config_types(union) if part_name(part) == name)()

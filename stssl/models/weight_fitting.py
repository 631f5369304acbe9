"""Fit weights to a backbone: pick the kernels of its bands, resize position embeddings, and list what did not match."""

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonObject
from stssl.models.weight_bands import BandsMissing, PickedBands, pick_bands, picked_kernels
from stssl.models.weight_files import StateDict
from stssl.models.weight_sources import Checkpoint

COUNTERS = ("num_batches_tracked",)
"""Ends of the names of tensors that a file may lack: no result depends on these tensors."""
DERIVED = (*COUNTERS, "relative_position_index", "attn_mask", "mask_token")
"""Ends of the names of tensors that only a file may have: constants, or tensors for masked pretraining."""
LEARNT_HEADS = ("fc.", "head.", "heads.", "classifier.", "projector.", "predictor.")
"""Starts of the names of tensors that trainers put behind an encoder."""
SHOWN = 12
"""Largest number of names that a log line lists."""


@dataclass
class Matching:
    """Record which tensors of a weights file were loaded into a backbone, and which did not match.

    Attributes:
        loaded: Names of tensors that were loaded, also those that were reshaped.
        missing: Names of tensors of the backbone that the file lacks: they keep their random values.
        unexpected: Names of tensors of the file that were not used.
        reshaped: For the name of each tensor that was adapted, a description of the change, such as `to 4 bands`.
        file_bands: Names of the file's bands; None if unknown.
        dropped: Names of bands that only the file has.
        filled: Names of bands that only the images have.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    file_bands: tuple[str, ...] | None = None
    dropped: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)

    def about(self) -> JsonObject:
        """Return this record as JSON values for the record of a run: names of tensors and bands.

        Of the loaded tensors, it has only the number.
        """
        bands: JsonObject = {"file": list(self.file_bands) if self.file_bands else None}
        bands |= {"dropped": [*self.dropped], "filled": [*self.filled]}
        return {
            "loaded": len(self.loaded),
            "missing": [*self.missing],
            "unexpected": [*self.unexpected],
            "reshaped": {**self.reshaped},
            "bands": bands,
        }

    def lines(self) -> list[str]:
        """Return lines of text for the log. Each has the names of one kind, such as missing tensors or dropped bands.

        Of the loaded tensors, a line tells only the number.
        """
        rows = {
            "loaded": [f"{len(self.loaded)} tensors"],
            "missing": self.missing,
            "unexpected": self.unexpected,
            "reshaped": [f"{name} {how}" for name, how in self.reshaped.items()],
            "bands dropped": self.dropped,
            "bands filled": self.filled,
        }
        return [f"{what:<13} {_listed(names)}" for what, names in rows.items() if names]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def fit_weights(
    backbone: nn.Module,
    checkpoint: Checkpoint,
    *,
    image_bands: tuple[str, ...] | None = None,
    missing: BandsMissing | None = None,
    with_head: bool = False,
) -> Matching:
    """Load weights into a backbone, in place, adapted to its bands and image size.

    Args:
        backbone: Backbone that `make_backbone` built.
        checkpoint: Weights under timm's names. Its `bands` are the names of the bands, if they are known.
        image_bands: Bands of the images, in the order of their channels; None if they are not known.
        missing: How to fill bands that the file lacks, `zero` or `mean`; None raises an error for them.
        with_head: True to load the head, too.

    Returns:
        Record of the tensors that were loaded or changed, and of those that did not match.

    Raises:
        ConfigError: The weights are of another network, or of other bands.
    """
    own, head = backbone.state_dict(), _head(backbone)
    skipped = () if with_head else (head,)
    found = Matching(unexpected=list(checkpoint.aside), file_bands=checkpoint.bands)
    state: StateDict = {}
    for name, value in checkpoint.tensors.items():
        renamed = _renamed(name, own)
        if (
            renamed.startswith(skipped)
            or (renamed not in own and renamed.startswith(LEARNT_HEADS))
            or (renamed not in own and renamed.endswith(DERIVED))
        ):
            found.unexpected.append(name)
        else:
            state[renamed] = value
    needed = {name: value for name, value in own.items() if not name.startswith(skipped)}
    first = first_layer(backbone)
    for name in [name for name in state if name in needed]:
        fitted = state[name]
        if name == first and fitted.ndim == needed[name].ndim == 4:
            fitted = _of_bands(
                fitted, needed[name].shape[1], checkpoint, image_bands=image_bands, missing=missing, found=found
            )
        elif name == "pos_embed":
            fitted = _moved(fitted, needed[name], backbone, found)
        state[name] = fitted
    _refuse_others(state, needed, checkpoint)
    found.loaded = [name for name in needed if name in state]
    found.missing = [name for name in needed if name not in state]
    # A backbone on the device "meta" has no memory to copy into, so it must take the tensors themselves.
    bare = next(iter(own.values())).is_meta
    backbone.load_state_dict({name: state[name] for name in found.loaded}, strict=False, assign=bare)
    return found


def _refuse_others(state: StateDict, needed: StateDict, checkpoint: Checkpoint) -> None:
    """Check that the tensors of a weights file have the names and shapes of the backbone's tensors.

    Args:
        state: Tensors of the file that are to be loaded, by the backbone's names.
        needed: Tensors of the backbone that the file must have, by name.
        checkpoint: The weights, for the message.

    Raises:
        ConfigError: The weights are of another network. The message names up to three tensors.
    """
    problems = {
        "other shapes": [
            f"{name} {tuple(value.shape)}"
            for name, value in state.items()
            if name in needed and value.shape != needed[name].shape
        ],
        "lacks": [name for name in needed if name not in state and not name.endswith(COUNTERS)],
        "also has": [name for name in state if name not in needed],
    }
    for what, names in problems.items():
        if names:
            said = f" It says that it is {checkpoint.arch}." if checkpoint.arch else ""
            alike = sum(name in needed for name in state)
            layout = checkpoint.layout if 2 * alike > len(state) else "that of another program or network"
            raise ConfigError(
                f"model.weights: {_place(checkpoint)} does not fit model.backbone ({what}: {', '.join(names[:3])}). "
                f"Its layout is {layout}.{said} Give the backbone that it was made for, with the same "
                "model.backbone_args; `stssl weights FILE` lists which fit."
            )


def _place(checkpoint: Checkpoint) -> str:
    return checkpoint.source.removeprefix("file:")


def _renamed(name: str, own: StateDict) -> str:
    """Return the backbone's name for a tensor of a file. It differs only for the last norm of transformers.

    timm calls this norm `fc_norm` if the transformer pools by averaging, because it comes after the pooling. Other
    programs always call it `norm`.

    Args:
        name: Name of the tensor in the file.
        own: Tensors of the backbone by name.
    """
    for other in ("fc_" + name, name.removeprefix("fc_")):
        if name not in own and other in own:
            return other
    return name


def _head(backbone: nn.Module) -> str:
    return str(getattr(backbone, "default_cfg", {}).get("classifier", "fc" if hasattr(backbone, "fc") else "head"))


def first_layer(backbone: nn.Module) -> str:
    """Return the name of the tensor with the kernels of a backbone's first layer, which reads the images."""
    first = getattr(backbone, "default_cfg", {}).get("first_conv", "conv1")
    return f"{first[0] if isinstance(first, tuple | list) else first}.weight"


def _of_bands(
    kernel: Tensor,
    channels: int,
    checkpoint: Checkpoint,
    *,
    image_bands: tuple[str, ...] | None,
    missing: BandsMissing | None,
    found: Matching,
) -> Tensor:
    """Return the kernels of a file's first layer for the bands of the images, [outputs, image bands, height, width].

    If the kernels change, note in `found` which bands were dropped or filled.

    Args:
        kernel: [outputs, file bands, height, width] kernels of the weights file.
        channels: Number of bands of the images.
        checkpoint: The weights, with the names of their bands if known.
        image_bands: Names of the bands of the images; None if they are not known.
        missing: How to fill bands that the file lacks, `zero` or `mean`; None raises an error for them.
        found: Record of the match, which this function changes in place.

    Raises:
        ConfigError: The numbers of bands differ and their names are not known, or the file lacks bands.
    """
    count, place = kernel.shape[1], _place(checkpoint)
    names = checkpoint.bands
    if names is not None and len(names) != count:
        raise ConfigError(
            f"model.weights_bands: {place} sees {count} bands, and {len(names)} are named: {', '.join(names)}."
        )
    if names is None or image_bands is None:
        if count == channels:
            # Assume that the file has the same bands in the same order, as nothing says otherwise. `FirstWeights` warns
            # that this is a guess.
            return kernel
        raise ConfigError(
            f"model.weights: {place} sees {count} bands and data.bands has {channels}, and the file does not say which "
            f"bands they are. Name them in order: model.weights_bands=[...] with {count} names."
        )
    picked: PickedBands = pick_bands(names, image_bands, missing, place)
    found.dropped, found.filled = picked.dropped, picked.filled
    if not picked.changes:
        return kernel
    made = picked_kernels(kernel, picked, missing)
    found.reshaped[first_layer_text(kernel)] = f"to {made.shape[1]} bands"
    return made


def first_layer_text(kernel: Tensor) -> str:
    """Return the words for the log that name the first layer, with the shape of its kernels in the weights file.

    Args:
        kernel: Kernels of the weights file.
    """
    return f"first layer {tuple(kernel.shape)}"


def _moved(value: Tensor, own: Tensor, backbone: nn.Module, found: Matching) -> Tensor:
    """Return a file's position embeddings, resized to the backbone's grid of patches by bicubic interpolation.

    If they fit already or cannot be resized, return them unchanged. Note a resize in `found`, in place.

    Args:
        value: [1, tokens, width] position embeddings of the file.
        own: [1, tokens, width] position embeddings of the backbone.
        backbone: Backbone with the grid of patches to which the embeddings are resized.
        found: Record of the tensors that were adapted.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    if value.ndim != 3 or own.ndim != 3 or value.shape == own.shape:
        return value
    grid: tuple[int, int] = getattr(backbone.get_submodule("patch_embed"), "grid_size")  # noqa: B009
    # Compute the number of non-patch tokens with a position from the shapes, because it differs among models.
    prefix = own.shape[1] - math.prod(grid)
    if math.isqrt(value.shape[1] - prefix) ** 2 != value.shape[1] - prefix:
        return value  # timm can resize only a square grid; `fit_weights` raises an error that names the shape
    moved: Tensor = resample_abs_pos_embed(value, list(grid), num_prefix_tokens=prefix, antialias=False)
    found.reshaped["pos_embed"] = f"from {value.shape[1] - prefix} to {math.prod(grid)} places"
    return moved

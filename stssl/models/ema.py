"""Average a network's weights over steps (EMA), and compute BatchNorm statistics for averaged weights."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stssl.base.distributed import gather_rows, rank, world_size
from stssl.models.freezing import is_frozen


class Ema(nn.Module):
    """Average the weights of a network over its training steps (EMA), in a copy of the network that only predicts."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Copy `network` as the first average.

        Args:
            network: Network that is trained. It is not changed.
            decay: Share of the old average that each update keeps, 0..1. The rest comes from the current weights.
        """
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Ema":
        """Stay in evaluation mode, whether `mode` is True or False: the average only predicts.

        Return the module itself.
        """
        return super().train(False)

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Move the averaged parameters toward the current parameters of the trained `network`.

        Leave the buffers unchanged.
        """
        own: list[Tensor] = list(self.network.parameters())
        live: list[Tensor] = list(network.parameters())
        # Use one fused operation for all parameters: a loop would start one kernel for each, which is slower.
        torch._foreach_lerp_(own, live, 1 - self.decay)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the averaged parameters toward those of the trained `network`. Copy its BatchNorm running statistics."""
        self.update_parameters(network)
        if statistics := running_statistics(network):
            torch._foreach_copy_(running_statistics(self.network), statistics)


def batchnorms(module: nn.Module) -> list[_BatchNorm]:
    """Return a list of a module's BatchNorm layers that keep running statistics, except those of frozen backbones.

    Nothing may change the statistics of a frozen backbone: no step, no exchange between ranks, no new estimate.
    """
    fixed = {layer for part in module.modules() if is_frozen(part) for layer in part.modules()}
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and layer not in fixed
    ]


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return a list of the running means and variances of a module's BatchNorm layers. Leave out frozen backbones.

    The tensors are the layers' own buffers, not copies.
    """
    return [s for layer in batchnorms(module) for s in (layer.running_mean, layer.running_var) if s is not None]


class KeptStatistics:
    """Save the running statistics of a module's BatchNorm layers before a step, and restore them if it is skipped."""

    def __init__(self, module: nn.Module) -> None:
        """Find the running statistics that a step can change: those of `module`'s BatchNorm layers in training mode."""
        self.live = [
            value
            for layer in batchnorms(module)
            if layer.training
            for value in (layer.running_mean, layer.running_var)
            if value is not None
        ]
        self.saved: Tensor | None = None

    def save(self) -> None:
        """Copy the current running statistics of the layers, so that `restore` can bring them back."""
        if self.live:
            self.saved = torch.cat([value.flatten() for value in self.live])

    @torch.no_grad()
    def restore(self, bad: Tensor) -> None:
        """Write the saved running statistics back into the BatchNorm layers if `bad` is true.

        Do nothing before a `save`.

        Args:
            bad: Boolean tensor with one value: True if the training step is skipped.
        """
        if self.saved is None:
            return
        # Use `where`, not `if bad`: the `if` would make the CPU wait until the GPU has computed `bad`.
        flat = torch.where(bad, self.saved, torch.cat([value.flatten() for value in self.live]))
        parts = torch.split(flat, [value.numel() for value in self.live])
        torch._foreach_copy_(self.live, [part.view_as(value) for part, value in zip(parts, self.live, strict=True)])


@torch.no_grad()
def average_batchnorm(module: nn.Module) -> None:
    """Replace, in place, a module's running BatchNorm statistics by their mean over all ranks (training processes).

    All ranks must call this together.
    """
    statistics = running_statistics(module)
    if world_size() == 1 or not statistics:
        return
    flat = torch.cat([value.flatten() for value in statistics])
    dist.all_reduce(flat)
    means = torch.split(flat / world_size(), [value.numel() for value in statistics])
    for value, mean in zip(statistics, means, strict=True):
        value.copy_(mean.view_as(value))


@torch.no_grad()
def statistics_of_ranks(module: nn.Module) -> Tensor | None:
    """Gather the running BatchNorm statistics that each rank (training process) has in its copy of a module.

    All ranks must call this together.

    Returns:
        [ranks, values] tensor, one row for each rank; None if the run has one rank or the module has no such
            statistics.
    """
    statistics = running_statistics(module)
    if world_size() == 1 or not statistics:
        return None
    return gather_rows(torch.cat([value.flatten() for value in statistics])[None], [1] * world_size())


@torch.no_grad()
def take_statistics(module: nn.Module, of_ranks: Tensor) -> None:
    """Set, in place, the running BatchNorm statistics of a module to values that were gathered earlier from all ranks.

    Args:
        module: Module whose statistics are set.
        of_ranks: [ranks, values] result of `statistics_of_ranks`: one row for each rank (training process). This rank
            uses its own row. If the run now has another number of ranks, it uses the mean over the rows.

    Raises:
        ValueError: The tensor has another number of values than the module has statistics.
    """
    statistics = running_statistics(module)
    sizes = [value.numel() for value in statistics]
    if of_ranks.ndim != 2 or of_ranks.shape[1] != sum(sizes) or not len(of_ranks):
        raise ValueError(f"the ranks' BatchNorm statistics have shape {tuple(of_ranks.shape)}, not [n, {sum(sizes)}].")
    own = of_ranks[rank()] if len(of_ranks) == world_size() else of_ranks.mean(0)
    for value, taken in zip(statistics, torch.split(own, sizes), strict=True):
        value.copy_(taken.view_as(value))


@torch.no_grad()
def reestimate_batchnorm(network: nn.Module, run: Callable[[], Iterable[object]]) -> None:
    """Compute a network's running BatchNorm statistics anew, as the mean over the batches that `run` passes through it.

    With several ranks (training processes), each passes its own batches, and all get the mean over all batches.

    Args:
        network: Network with the BatchNorm layers to estimate, which are changed in place. It is in evaluation mode
            afterwards.
        run: Function without arguments. It passes batches through `network`, and yields once after each batch.
    """
    layers = batchnorms(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # without a momentum, torch takes the mean over all batches since the reset
        layer.train()
    passed = sum(1 for _ in run())
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
    if world_size() > 1:
        _average_by_batches(running_statistics(network), passed)


def _average_by_batches(statistics: list[Tensor], passed: int) -> None:
    """Replace BatchNorm statistics, in place, by their mean over all ranks (training processes), weighted by batches.

    Args:
        statistics: Running statistics on this rank. They are changed.
        passed: Number of batches from which this rank computed them: their weight in the mean.
    """
    sums = torch.cat([value.flatten() for value in statistics] + [statistics[0].new_ones(1)]) * passed
    dist.all_reduce(sums)
    means = torch.split(sums[:-1] / sums[-1], [value.numel() for value in statistics])
    for value, mean in zip(statistics, means, strict=True):
        value.copy_(mean.view_as(value))


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside a `with` block, and restore its earlier mode afterwards."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@contextlib.contextmanager
def training_quietly(network: nn.Module) -> Iterator[None]:
    """Put a network into training mode inside a `with` block, without updates of its BatchNorm running statistics.

    Afterwards, restore the network's earlier mode.
    """
    training = network.training
    network.train()
    try:
        with frozen_statistics(network):
            yield
    finally:
        network.train(training)


def frozen_statistics(module: nn.Module) -> "_Frozen":
    """Return a context manager that stops updates of the running statistics of a module's BatchNorm layers.

    Inside its `with` block, these layers normalize by the mean and variance of each batch.
    """
    return _Frozen(batchnorms(module))


class _Frozen:
    def __init__(self, layers: list[_BatchNorm]) -> None:
        self.layers = layers

    def __enter__(self) -> None:
        self.saved: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = []
        for layer in self.layers:
            self.saved.append((layer.running_mean, layer.running_var, layer.num_batches_tracked))
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                # Without running statistics, BatchNorm normalizes by the batch and has nothing to update.
                layer._buffers[name] = None

    def __exit__(self, *error: object) -> None:
        for layer, saved in zip(self.layers, self.saved, strict=True):
            for name, value in zip(("running_mean", "running_var", "num_batches_tracked"), saved, strict=True):
                layer._buffers[name] = value

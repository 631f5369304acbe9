"""Define the interface between the training loop and a step."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class StepOutput:
    """Hold the result of one step.

    Attributes:
        loss: Scalar to differentiate.
        logs: Detached scalars by name. Their mean over ranks is the value of the global batch.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class TrainingStep(nn.Module):
    """Own the trained networks and all state of the training; `forward` takes a batch and returns a `StepOutput`.

    Attributes:
        networks: Modules that get gradients, by name. The loop logs and bounds each module's gradient norm separately.
    """

    networks: nn.ModuleDict

    def backbones(self) -> list[nn.Module]:
        """List the backbones. They do most of the arithmetic of a step."""
        found = [getattr(network, "backbone", None) for network in self.networks.values()]
        return [backbone for backbone in found if isinstance(backbone, nn.Module)]

    def after_optimizer(self, bad: Tensor) -> None:
        """Update what follows the networks, such as averages. The loop calls this after each optimizer step.

        Args:
            bad: Scalar tensor; true if the loop skipped the step because its gradients are not finite.
        """

"""Define the interface between the loop and a training step."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class StepOutput:
    """Hold the loss to differentiate, and detached scalars whose mean over ranks is the value of the global batch."""

    loss: Tensor
    logs: dict[str, Tensor]


class TrainingStep(nn.Module):
    """Own what is trained and all its state; `forward` of a batch returns the `StepOutput` of one step.

    Attributes:
        networks: Modules that get gradients, by name. The gradient norm of each is logged and bounded on its own.
    """

    networks: nn.ModuleDict

    def backbones(self) -> list[nn.Module]:
        """List the backbones, which take most of a step's arithmetic."""
        found = [getattr(network, "backbone", None) for network in self.networks.values()]
        return [backbone for backbone in found if isinstance(backbone, nn.Module)]

    def after_optimizer(self, bad: Tensor) -> None:
        """Update what follows the networks, such as averages; called after each optimizer step.

        Args:
            bad: Scalar tensor; true if the step was left out because its gradients are not finite.
        """

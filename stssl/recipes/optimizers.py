"""Configure the optimizer, its learning rate and the length of training."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from stssl.base.config import Config, Domain, Positive

Decayed = Annotated[Literal["kernels", "tokens", "all"], Domain(choices=("kernels", "tokens", "all"))]
"""Parameters with weight decay: `kernels` are matrices and convolution kernels, `tokens` adds tokens and positions."""


class RatesConfig(Config):
    """Configure how much slower the backbone learns than the new layers.

    Attributes:
        backbone_factor: Learning rate of the backbone, divided by `lr`. New layers, such as the head, learn at `lr`.
            None is 0.1 if a training recipe gives `model.weights` and no `layer_decay`, else 1.
        layer_decay: Each layer of the backbone learns at this fraction of the rate of the layer after it. Typical
            values for pretrained vision transformers are 0.65 to 0.9. 1 gives all layers one rate.
    """

    backbone_factor: Annotated[float, Field(gt=0, le=100), Domain(0.01, 1.0, log=True)] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1), Domain(0.5, 1.0)] = 1.0


class AdamWConfig(RatesConfig):
    """Configure AdamW (arXiv:1711.05101).

    Attributes:
        name: Always `adamw`.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        decayed: Parameters with weight decay: `kernels` (matrices and convolution kernels), `tokens` (these, and tokens
            and position embeddings), or `all` (these, and biases and normalization weights).
        clip: Largest gradient norm of each network. Larger gradients are scaled down; None never scales.
    """

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0), Domain(1e-5, 1e-2, log=True)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0), Domain(1e-5, 1e-1, log=True)] = 5e-4
    decayed: Decayed = "kernels"
    clip: Annotated[float, Field(gt=0)] | None = None


class SgdConfig(RatesConfig):
    """Configure stochastic gradient descent with momentum.

    Attributes:
        name: Always `sgd`.
        lr: Peak learning rate.
        momentum: Share of the last step's direction that a step keeps.
        weight_decay: L2 penalty.
        decayed: Parameters with this penalty: `kernels` (matrices and convolution kernels), `tokens` (these, and tokens
            and position embeddings), or `all` (these, and biases and normalization weights).
        clip: Largest gradient norm of each network. Larger gradients are scaled down; None never scales.
    """

    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0), Domain(1e-3, 1.0, log=True)] = 0.03
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0), Domain(1e-6, 1e-2, log=True)] = 1e-4
    decayed: Decayed = "kernels"
    clip: Annotated[float, Field(gt=0)] | None = None


def _optimizer_name(given: object) -> object:
    # Take a section `optimizer` without a name as AdamW, so that an override such as optimizer.lr=0.001 works alone.
    return given.get("name", "adamw") if isinstance(given, dict) else getattr(given, "name", None)


OptimizerConfig = Annotated[
    Annotated[AdamWConfig, Tag("adamw")] | Annotated[SgdConfig, Tag("sgd")], Discriminator(_optimizer_name)
]
"""Settings of any optimizer. Without a `name` they belong to AdamW."""


class ScheduleConfig(Config):
    """Set the length of training, and how the learning rate changes. All numbers count training steps.

    Attributes:
        steps: Length of the run.
        warmup: Number of first steps in which the learning rate rises linearly from 0.
        head_steps: Number of first steps in which the backbone's weights wait, and only the new layers learn.
        supervised_start: Number of first steps that learn from labels alone.
        patience: Number of steps without a better validation score before the run ends early; None never ends early.
        evaluate_every: Number of steps between validations. Each validation writes a checkpoint.
        checkpoint_every: Number of steps between further checkpoints: the most that a run repeats after a crash. None
            writes them only at validations.
        decay: Fall of the learning rate after the warmup. `cosine` ends at 0. `fixmatch` ends at a fifth of the peak:
            step t of T steps after the warmup has the factor cos(7 pi t / (16 T)).
        hold: Number of steps with the same learning rate after the warmup. With the number of steps of an epoch, the
            rate changes once an epoch.
    """

    steps: Positive = 64_000
    warmup: Annotated[int, Field(ge=0)] = 0
    head_steps: Annotated[int, Field(ge=0)] = 0
    supervised_start: Annotated[int, Field(ge=0)] = 0
    patience: Positive | None = None
    evaluate_every: Positive = 2_000
    checkpoint_every: Positive | None = 500
    decay: Literal["fixmatch", "cosine"] = "fixmatch"
    hold: Positive = 1

    def saved_after(self, step: int) -> bool:
        """Return True if `checkpoint_every` asks for a checkpoint after training step `step`.

        Checkpoints of validations do not count.
        """
        return self.checkpoint_every is not None and step % self.checkpoint_every == 0

"""Define what all injection sites share. A site is the place where the context vector enters a backbone.

To add a site, write one file with a subclass of `InjectionBase` and a subclass of `Injection`, and add one line to
`stssl/models/sites.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from stssl.base.config import Config, Domain
from stssl.base.errors import ConfigError

Family = Literal["vit", "tokens", "cnn"]
"""Kinds of backbones.

`vit`: plain vision transformers. `tokens`: other networks with a row of blocks that work on tokens. `cnn`: networks
with stages that work on feature maps.
"""

Block = Annotated[int, Field(ge=0), Domain(0, 11)]
"""Number of a block of a transformer, counted from 0."""


class InjectionBase(Config):
    """Configure a site.

    Attributes:
        name: Name of the site in recipes.
    """

    name: str


class NoInjectionConfig(InjectionBase):
    """Configure a network without a site: no context enters."""

    name: Literal["none"] = "none"


@dataclass(frozen=True)
class Shape:
    """Describe a backbone for injection sites.

    Attributes:
        family: Kind of the backbone.
        width: Size of the pooled feature and of the context.
        blocks: Number of channels at each block or stage.
        heads: Number of attention heads of a block.
        class_token: True if the tokens of every block include a class token.
        channels_last: True if feature maps are [B, H, W, C], False if they are [B, C, H, W].
    """

    family: Family
    width: int
    blocks: tuple[int, ...]
    heads: int = 1
    class_token: bool = False
    channels_last: bool = False


class Injection(nn.Module):
    """Change nothing in the backbone. Subclasses (sites) override the methods where their context enters.

    In shapes, B is the number of images, T of tokens, and D is the width of the backbone.

    Attributes:
        config_type: Class of the site's part of a recipe.
        families: Kinds of backbones that the site fits.
        own_token: True if the site adds a token. Distillation compares the final state of this token.
        touched: Numbers of the blocks or stages that call `block`: before a transformer block, after another stage.
        head_width: Size of the feature that enters the head.
    """

    config_type: ClassVar[type[InjectionBase]]
    families: ClassVar[frozenset[Family]] = frozenset({"vit", "tokens", "cnn"})
    own_token: ClassVar[bool] = False

    def __init__(self, config: InjectionBase, shape: Shape) -> None:
        """Set which blocks call the site, for a backbone of the given shape.

        Raises:
            ConfigError: The backbone has no block with the number in `config`.
        """
        super().__init__()
        self.head_width = shape.width
        self.touched: Sequence[int] = ()
        entry = getattr(config, "block", None)
        if entry is not None:
            self.touched = (entry,)
            if entry >= len(shape.blocks):
                raise ConfigError(
                    f"model.injection.block: {entry}, but the backbone has blocks 0 to {len(shape.blocks) - 1}"
                )

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return True if the site can be used with a backbone of this shape."""
        return shape.family in cls.families

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Change tokens [B, T, D] before a transformer block, or feature maps [B, C, H, W] after a stage.

        Args:
            number: Number of the block or stage, from 0.
            values: Tokens or feature maps to change.
            context: [B, D] context vectors; None without metadata.
        """
        return values

    def leave(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split final tokens [B, T, D] into the backbone's tokens and the site's own token [B, D], if any."""
        return tokens, None

    def pooled(self, feature: Tensor, context: Tensor | None) -> Tensor:
        """Change the pooled feature [B, D] before it enters the head; the result is [B, head_width]."""
        return feature


class Nowhere(Injection):
    """Let no context enter the backbone."""

    config_type: ClassVar[type[InjectionBase]] = NoInjectionConfig

    def __init__(self, config: InjectionBase, shape: Shape) -> None:
        """Ignore `config`: a network without metadata may pass the configuration of another site."""
        super().__init__(NoInjectionConfig(), shape)


NOWHERE = Nowhere(NoInjectionConfig(), Shape("cnn", 0, ()))

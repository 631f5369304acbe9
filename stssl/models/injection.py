"""Define what all injection sites share: the places of a backbone where the context vector may enter.

A new site is one file with a subclass of `InjectionBase` and one of `Injection`, and one line in
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

`vit`: plain vision transformers. `tokens`: other networks that are a row of blocks over tokens. `cnn`: networks of
stages over maps.
"""

Block = Annotated[int, Field(ge=0), Domain(0, 11)]
"""Number of a transformer's block, from 0."""


class InjectionBase(Config):
    """Configure a site.

    Attributes:
        name: Name of the site in recipes.
    """

    name: str


class NoInjectionConfig(InjectionBase):
    """Configure a network whose context enters nowhere."""

    name: Literal["none"] = "none"


@dataclass(frozen=True)
class Shape:
    """Describe a backbone for injection sites.

    Attributes:
        family: Kind of the backbone.
        width: Size of the pooled feature and of the context.
        blocks: Number of channels at each block or stage.
        heads: Number of attention heads of a block.
        class_token: True if there is a class token among the tokens of all blocks.
        channels_last: True if maps are [B, H, W, C].
    """

    family: Family
    width: int
    blocks: tuple[int, ...]
    heads: int = 1
    class_token: bool = False
    channels_last: bool = False


class Injection(nn.Module):
    """Let the context enter nowhere; sites override the methods of the places where they let it enter.

    Attributes:
        config_type: Class of the site's part of a recipe.
        families: Kinds of backbones that the site fits.
        own_token: True if the site adds a token, whose final state is the context to distill.
        touched: Blocks or stages for which `block` is called: before transformer blocks, after stages of others.
        head_width: Size of the feature that enters the head.
    """

    config_type: ClassVar[type[InjectionBase]]
    families: ClassVar[frozenset[Family]] = frozenset({"vit", "tokens", "cnn"})
    own_token: ClassVar[bool] = False

    def __init__(self, config: InjectionBase, shape: Shape) -> None:
        """Prepare for a backbone.

        Raises:
            ConfigError: The backbone has no block of the number that `config` gives.
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
        """Return True if the site can be used with a backbone."""
        return shape.family in cls.families

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Change tokens [B, T, D] before a transformer block, or maps [B, C, H, W] after a stage.

        Args:
            number: Number of the block or stage, from 0.
            values: Its tokens or maps.
            context: [B, D] context vectors; None without metadata.
        """
        return values

    def leave(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split final tokens [B, T, D] into those of the backbone and the state [B, D] of the site's own token."""
        return tokens, None

    def pooled(self, feature: Tensor, context: Tensor | None) -> Tensor:
        """Change the pooled feature [B, D] before it enters the head; the result is [B, head_width]."""
        return feature


class Nowhere(Injection):
    """Let the context enter nowhere."""

    config_type: ClassVar[type[InjectionBase]] = NoInjectionConfig

    def __init__(self, config: InjectionBase, shape: Shape) -> None:
        """Touch no block, also if `config` is that of another site, whose network has no metadata."""
        super().__init__(NoInjectionConfig(), shape)


NOWHERE = Nowhere(NoInjectionConfig(), Shape("cnn", 0, ()))

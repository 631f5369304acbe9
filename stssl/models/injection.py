"""Define the base classes of injection sites. A site adds the context vector (encoded place and date) to a backbone.

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
"""Kinds of backbones, for injection sites.

`vit`: plain vision transformers. `tokens`: other networks with a row of blocks that work on tokens. `cnn`: networks
with stages that work on feature maps.
"""

Block = Annotated[int, Field(ge=0), Domain(0, 11)]
"""Number of a block of a transformer, counted from 0."""


class InjectionBase(Config):
    """Define the setting that all injection sites share.

    Attributes:
        name: Name of the site in recipes.
    """

    name: str


class NoInjectionConfig(InjectionBase):
    """Turn injection off: no metadata enters the backbone."""

    name: Literal["none"] = "none"


@dataclass(frozen=True)
class Shape:
    """Describe a backbone's kind and sizes. Injection sites need them to give their layers the right sizes.

    Attributes:
        family: Kind of the backbone.
        width: Size of the pooled feature and of the context vector.
        blocks: Number of channels at each transformer block, or at each stage of another backbone.
        heads: Number of attention heads of a transformer block.
        class_token: True if the tokens of every block include a class token.
        channels_last: True if feature maps are [images, height, width, channels], False if they are [images, channels,
            height, width].
    """

    family: Family
    width: int
    blocks: tuple[int, ...]
    heads: int = 1
    class_token: bool = False
    channels_last: bool = False


class Injection(nn.Module):
    """Define the hooks by which a site adds the context vector to a backbone. This base class changes nothing.

    Subclasses (sites) override the methods at the points where their context enters.

    Attributes:
        config_type: Class of the site's settings in a recipe.
        families: Kinds of backbones that the site fits.
        own_token: True if the site adds a token to each image's tokens. Distillation compares the final state of this
            token.
        touched: Numbers of the transformer blocks before which `block` is called, or of the stages of another backbone
            after which it is called.
        head_width: Size of the feature that enters the head.
    """

    config_type: ClassVar[type[InjectionBase]]
    families: ClassVar[frozenset[Family]] = frozenset({"vit", "tokens", "cnn"})
    own_token: ClassVar[bool] = False

    def __init__(self, config: InjectionBase, shape: Shape) -> None:
        """Create the site for a backbone. If `config` has the setting `block`, the site is called at that block.

        Args:
            config: Settings of the site.
            shape: Kind and sizes of the backbone.

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
        """Return True if the site can be used with a backbone of this kind and these sizes (`shape`)."""
        return shape.family in cls.families

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Add the context vectors to the tokens before a transformer block, or to feature maps after a stage.

        Args:
            number: Number of the block or stage, from 0.
            values: Tokens [images, tokens, width], or feature maps [images, channels, height, width].
            context: [images, width] context vectors; None without metadata.

        Returns:
            Tokens or feature maps with the context. A site with `own_token` returns one token more per image.
        """
        return values

    def leave(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the final tokens as two parts: those of the backbone, and the site's own token.

        Args:
            tokens: [images, tokens, width] final tokens, or the final feature maps of a backbone without tokens.

        Returns:
            Backbone's tokens or feature maps; and the site's own token [images, width], or None if the site added no
                token.
        """
        return tokens, None

    def pooled(self, feature: Tensor, context: Tensor | None) -> Tensor:
        """Return the pooled features with the context vectors added, [images, head_width], as the head takes them.

        Args:
            feature: [images, width] pooled features of the backbone.
            context: [images, width] context vectors; None without metadata.
        """
        return feature


class Nowhere(Injection):
    """Add no context to the backbone. Networks without metadata use this site."""

    config_type: ClassVar[type[InjectionBase]] = NoInjectionConfig

    def __init__(self, config: InjectionBase, shape: Shape) -> None:
        """Create the site for a backbone.

        Args:
            config: Not used. It may be the configuration of another site.
            shape: Kind and sizes of the backbone.
        """
        super().__init__(NoInjectionConfig(), shape)


NOWHERE = Nowhere(NoInjectionConfig(), Shape("cnn", 0, ()))

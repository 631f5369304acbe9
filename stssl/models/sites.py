"""Define the injection sites: ways to add the context vector (encoded place and date) to a backbone.

A recipe chooses one by `model.injection.name`.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.base.config import Domain, part_name
from stssl.base.errors import ConfigError
from stssl.models.injection import Block, Family, Injection, InjectionBase, Nowhere, Shape


class TokenConfig(InjectionBase):
    """Define the settings of the site `token`: an extra token carries the context vector.

    Attributes:
        block: Number of the transformer block. The token enters before it.
    """

    name: Literal["token"] = "token"
    block: Block = 0


class Token(Injection):
    """Append a token to a transformer's tokens. It carries the context vector (encoded place and date).

    The token comes after the class and patch tokens, and has its own position embedding. A distilled student sees no
    metadata: its token is only the position embedding.
    """

    config_type: ClassVar[type[InjectionBase]] = TokenConfig
    families: ClassVar[frozenset[Family]] = frozenset({"vit"})
    own_token: ClassVar[bool] = True

    def __init__(self, config: TokenConfig, shape: Shape) -> None:
        """Create the position embedding of the extra token. The token enters before block `config.block`.

        Args:
            config: Settings of the site.
            shape: Kind and sizes of the backbone.
        """
        super().__init__(config, shape)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, shape.width), std=0.02))

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Return the tokens [images, tokens + 1, width]: those of the backbone, then the site's own token.

        Its own token is the position embedding plus the context vector.

        Args:
            number: Not used.
            values: [images, tokens, width] tokens of the backbone.
            context: [images, width] context vectors; None appends only the position embedding.
        """
        # `len` would fix the number of images in an exported graph; `shape[0]` leaves it open.
        token = self.position.expand(values.shape[0], -1, -1)
        return torch.cat([values, token if context is None else token + context[:, None]], 1)

    def leave(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the final tokens [images, tokens + 1, width] into two parts.

        Returns:
            Backbone's own tokens [images, tokens, width], and the appended token [images, width].
        """
        return tokens[:, :-1], tokens[:, -1]


class ClassAddConfig(InjectionBase):
    """Define the settings of the site `class_add`, which adds the context vector to the class token.

    Attributes:
        block: Number of the transformer block. The context is added before it.
    """

    name: Literal["class_add"] = "class_add"
    block: Block = 0


class ClassAdd(Injection):
    """Add the context vector (encoded place and date) to the class token of a transformer."""

    config_type: ClassVar[type[InjectionBase]] = ClassAddConfig
    families: ClassVar[frozenset[Family]] = frozenset({"vit", "tokens"})

    def __init__(self, config: ClassAddConfig, shape: Shape) -> None:
        """Create the site for a backbone that has a class token.

        Args:
            config: Settings of the site.
            shape: Kind and sizes of the backbone.

        Raises:
            ConfigError: The backbone has no class token, or no block with the number in `config`.
        """
        super().__init__(config, shape)
        if not shape.class_token:
            raise ConfigError(
                "model.injection: class_add needs a class token, and the backbone has none. Try token_add."
            )

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Return the tokens with the context vectors added to the first one, the class token.

        Args:
            number: Not used.
            values: [images, tokens, width] tokens of the backbone.
            context: [images, width] context vectors; None leaves the tokens unchanged.
        """
        if context is None:
            return values
        return torch.cat([values[:, :1] + context[:, None], values[:, 1:]], 1)


class TokenAddConfig(InjectionBase):
    """Define the settings of the site `token_add`: it adds the context vector, times a learned scale, to every token.

    Attributes:
        block: Number of the transformer block. The context is added before it.
        scale: First value of the learned scale.
    """

    name: Literal["token_add"] = "token_add"
    block: Block = 0
    scale: Annotated[float, Field(ge=0), Domain(0.0, 1.0)] = 0.1


class TokenAdd(Injection):
    """Add the context vector (encoded place and date), times a learned scale, to every token of a transformer."""

    config_type: ClassVar[type[InjectionBase]] = TokenAddConfig
    families: ClassVar[frozenset[Family]] = frozenset({"vit", "tokens"})

    def __init__(self, config: TokenAddConfig, shape: Shape) -> None:
        """Create the site. The learned scale starts at `config.scale`.

        Args:
            config: Settings of the site.
            shape: Kind and sizes of the backbone.
        """
        super().__init__(config, shape)
        self.scale = nn.Parameter(torch.tensor(config.scale))

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Return the tokens with the context vectors, times the learned scale, added to each of them.

        Args:
            number: Not used.
            values: [images, tokens, width] tokens of the backbone.
            context: [images, width] context vectors; None leaves the tokens unchanged.
        """
        return values if context is None else values + self.scale * context[:, None]


class FilmConfig(InjectionBase):
    """Select the site `film`: the context vector scales and shifts the channels at every block or stage."""

    name: Literal["film"] = "film"


class Film(Injection):
    """Scale and shift the backbone's channels by factors made from the context vector.

    This is FiLM (Perez et al., arXiv:1709.07871).
    """

    config_type: ClassVar[type[InjectionBase]] = FilmConfig

    def __init__(self, config: FilmConfig, shape: Shape) -> None:
        """Create one linear layer for each block or stage.

        All weights are 0, so the backbone is unchanged at the start.

        Args:
            config: Settings of the site.
            shape: Kind and sizes of the backbone.
        """
        super().__init__(config, shape)
        self.touched, self.channels_last = range(len(shape.blocks)), shape.channels_last
        self.layers = nn.ModuleList(nn.Linear(shape.width, 2 * channels) for channels in shape.blocks)
        for parameter in self.layers.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return True if the backbone has at least one block or stage, as its description `shape` says."""
        return bool(shape.blocks)

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Return tokens or feature maps with scaled and shifted channels: values * (1 + scale) + shift.

        A linear layer makes `scale` and `shift` [images, channels] from the context vectors.

        Args:
            number: Number of the block or stage, from 0, which chooses the linear layer.
            values: [images, tokens, channels] tokens, or feature maps with the channels in the second or the last axis.
            context: [images, width] context vectors; None leaves the values unchanged.
        """
        if context is None:
            return values
        factors: Tensor = self.layers[number](context)
        scale, shift = factors.chunk(2, 1)
        # If the second and the last axis are equally long, only `channels_last` tells which of them has the channels.
        square = values.shape[1] == values.shape[-1]
        first = values.ndim == 4 and values.shape[1] == scale.shape[1] and not (square and self.channels_last)
        axes = [scale.shape[0], *([1] * (values.ndim - 2))]
        axes.insert(1 if first else values.ndim - 1, scale.shape[1])
        return values * (1 + scale.view(axes)) + shift.view(axes)


class CrossAttentionConfig(InjectionBase):
    """Define the settings of the site `cross_attention`: tokens attend to vectors that are made from the context.

    Attributes:
        block: Number of the transformer block. The attention comes before it.
        tokens: Number of vectors that are made from the context.
    """

    name: Literal["cross_attention"] = "cross_attention"
    block: Block = 0
    tokens: Annotated[int, Field(ge=1), Domain(1, 16)] = 4


class CrossAttention(Injection):
    """Let tokens attend to vectors made from the context (encoded place and date). A learned gate scales the result.

    The gate is that of Flamingo (arXiv:2204.14198), and 0 at the start.
    """

    config_type: ClassVar[type[InjectionBase]] = CrossAttentionConfig
    families: ClassVar[frozenset[Family]] = frozenset({"vit", "tokens"})

    def __init__(self, config: CrossAttentionConfig, shape: Shape) -> None:
        """Create the attention, and the layer that turns a context vector into the vectors to which the tokens attend.

        Args:
            config: Settings of the site. Its `tokens` is the number of these vectors.
            shape: Kind and sizes of the backbone.
        """
        super().__init__(config, shape)
        self.norm = nn.LayerNorm(shape.width)
        self.keys = nn.Linear(shape.width, config.tokens * shape.width)
        self.attention = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(()))

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Return the tokens plus their attention to vectors made from the context, times the learned gate's tanh.

        Args:
            number: Not used.
            values: [images, tokens, width] tokens of the backbone.
            context: [images, width] context vectors; None leaves the tokens unchanged.
        """
        if context is None:
            return values
        keys = self.keys(context).view(context.shape[0], -1, context.shape[1])
        attended: Tensor = self.attention(self.norm(values), keys, keys, need_weights=False)[0]
        return values + self.gate.tanh() * attended


class LateConfig(InjectionBase):
    """Select the site `late`: the context vector is concatenated to the pooled feature."""

    name: Literal["late"] = "late"


class Late(Injection):
    """Concatenate the context vector (encoded place and date) to the pooled feature before the head."""

    config_type: ClassVar[type[InjectionBase]] = LateConfig

    def __init__(self, config: LateConfig, shape: Shape) -> None:
        """Create the site. It doubles the size of the head's input: the pooled feature, then the context vector.

        Args:
            config: Settings of the site.
            shape: Kind and sizes of the backbone.
        """
        super().__init__(config, shape)
        self.head_width = 2 * shape.width

    def pooled(self, feature: Tensor, context: Tensor | None) -> Tensor:
        """Return pooled features and context vectors, concatenated to [images, 2 * width].

        Args:
            feature: [images, width] pooled features of the backbone.
            context: [images, width] context vectors; None returns the features unchanged.
        """
        return feature if context is None else torch.cat([feature, context], 1)


_SITES: tuple[type[Injection], ...] = (
    Token,
    ClassAdd,
    TokenAdd,
    Film,
    CrossAttention,
    Late,
    Nowhere,
)
"""Classes of all injection sites. Register a new site here, and only here."""

INJECTIONS = {str(part_name(site.config_type)): site for site in _SITES}
"""Classes of the injection sites, by their names in recipes."""

if TYPE_CHECKING:
    InjectionConfig = InjectionBase
else:
    # Type checkers cannot read a union that is computed from `_SITES`: the branch above gives them the base class.
    InjectionConfig = Annotated[Union[tuple(site.config_type for site in _SITES)], Field(discriminator="name")]  # noqa: UP007

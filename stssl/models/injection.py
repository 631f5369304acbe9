"""Inject the context vector into a backbone: one class a site, each overriding only the places it changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.base.config import Config, Domain
from stssl.base.errors import ConfigError

Family = Literal["vit", "tokens", "cnn"]
"""`vit`: plain vision transformers. `tokens`: others that are a row of blocks over tokens. `cnn`: stages of maps."""

Block = Annotated[int, Field(ge=0), Domain(0, 11)]


class TokenConfig(Config):
    """An extra token that enters before transformer block `block`."""

    name: Literal["token"] = "token"
    block: Block = 0


class ClassAddConfig(Config):
    """Added to the class token before block `block`."""

    name: Literal["class_add"] = "class_add"
    block: Block = 0


class TokenAddConfig(Config):
    """Added to every token before block `block`, with a learned scale."""

    name: Literal["token_add"] = "token_add"
    block: Block = 0
    scale: Annotated[float, Field(ge=0), Domain(0.0, 1.0)] = 0.1


class FilmConfig(Config):
    """Scales and shifts channels at every block or stage."""

    name: Literal["film"] = "film"


class CrossAttentionConfig(Config):
    """Before block `block`, tokens attend to `tokens` vectors made from the context."""

    name: Literal["cross_attention"] = "cross_attention"
    block: Block = 0
    tokens: Annotated[int, Field(ge=1), Domain(1, 16)] = 4


class LateConfig(Config):
    """Concatenated to the pooled feature."""

    name: Literal["late"] = "late"


class NoInjectionConfig(Config):
    """Nowhere."""

    name: Literal["none"] = "none"


InjectionConfig = Annotated[
    TokenConfig | ClassAddConfig | TokenAddConfig | FilmConfig | CrossAttentionConfig | LateConfig | NoInjectionConfig,
    Field(discriminator="name"),
]


@dataclass(frozen=True)
class Shape:
    """Describe a backbone for injection sites.

    Attributes:
        family: What it is made of.
        width: Size of the pooled feature and of the context.
        blocks: Channels at each block or stage.
        heads: Attention heads of a block.
        class_token: Whether there is one among the tokens of all blocks.
        channels_last: Whether maps are [B, H, W, C].
    """

    family: Family
    width: int
    blocks: tuple[int, ...]
    heads: int = 1
    class_token: bool = False
    channels_last: bool = False


class Injection(nn.Module):
    """A site that does nothing; sites override what they touch.

    Attributes:
        families: Backbones that it fits.
        own_token: Whether it adds a token, whose final state is the context to distil.
        touched: Blocks or stages before (transformers) or after (others) which `block` is called.
    """

    families: ClassVar[frozenset[Family]] = frozenset({"vit", "tokens", "cnn"})
    own_token: ClassVar[bool] = False

    def __init__(self, config: Any, shape: Shape) -> None:
        """Prepare for a backbone.

        Raises:
            ConfigError: The backbone has no such block.
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

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Change tokens [B, T, D] before a transformer block, or maps [B, C, H, W] after a stage.

        Args:
            number: Number of the block or stage.
            values: Its tokens or maps.
            context: [B, D] context vectors; None without metadata.
        """
        return values

    def leave(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Final tokens without what the site added, and the context that the site's own token ended with."""
        return tokens, None

    def pooled(self, feature: Tensor, context: Tensor | None) -> Tensor:
        """The feature [B, D] that enters the head."""
        return feature


class Nowhere(Injection):
    """No injection."""

    def __init__(self, config: Any, shape: Shape) -> None:
        """Whatever the configuration, nothing is touched."""
        super().__init__(None, shape)


NOWHERE = Nowhere(NoInjectionConfig(), Shape("cnn", 0, ()))


class Token(Injection):
    """An extra token with its own position embedding, after class and patch tokens.

    A network without metadata that is to be distilled carries the bare position embedding.
    """

    families = frozenset({"vit"})
    own_token = True

    def __init__(self, config: TokenConfig, shape: Shape) -> None:
        """Enter before block `config.block`."""
        super().__init__(config, shape)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, shape.width), std=0.02))

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Append the token."""
        token = self.position.expand(len(values), -1, -1)
        return torch.cat([values, token if context is None else token + context[:, None]], 1)

    def leave(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take the token off again."""
        return tokens[:, :-1], tokens[:, -1]


class ClassAdd(Injection):
    """The context is added to the class token."""

    families = frozenset({"vit", "tokens"})

    def __init__(self, config: ClassAddConfig, shape: Shape) -> None:
        """Check that there is a class token.

        Raises:
            ConfigError: There is none.
        """
        super().__init__(config, shape)
        if not shape.class_token:
            raise ConfigError(
                "model.injection: class_add needs a class token, and the backbone has none. Try token_add."
            )

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Add to the first token."""
        if context is None:
            return values
        return torch.cat([values[:, :1] + context[:, None], values[:, 1:]], 1)


class TokenAdd(Injection):
    """The context is added to every token, with a learned scale."""

    families = frozenset({"vit", "tokens"})

    def __init__(self, config: TokenAddConfig, shape: Shape) -> None:
        """Start with `config.scale`."""
        super().__init__(config, shape)
        self.scale = nn.Parameter(torch.tensor(config.scale))

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Add to all tokens."""
        return values if context is None else values + self.scale * context[:, None]


class Film(Injection):
    """Feature-wise scale and shift (Perez et al., AAAI 2018, arXiv:1709.07871), starting as the identity."""

    def __init__(self, config: FilmConfig, shape: Shape) -> None:
        """One zero-initialized layer for each block or stage."""
        super().__init__(config, shape)
        self.touched, self.channels_last = range(len(shape.blocks)), shape.channels_last
        self.layers = nn.ModuleList(nn.Linear(shape.width, 2 * channels) for channels in shape.blocks)
        for parameter in self.layers.parameters():
            nn.init.zeros_(parameter)

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Values * (1 + scale) + shift, over the axis of channels."""
        if context is None:
            return values
        factors: Tensor = self.layers[number](context)
        scale, shift = factors.chunk(2, 1)
        square = values.shape[1] == values.shape[-1]  # then the shape does not tell which axis has the channels
        first = values.ndim == 4 and values.shape[1] == scale.shape[1] and not (square and self.channels_last)
        axes = [len(scale), *([1] * (values.ndim - 2))]
        axes.insert(1 if first else values.ndim - 1, scale.shape[1])
        return values * (1 + scale.view(axes)) + shift.view(axes)


class CrossAttention(Injection):
    """Tokens attend to the context through a gate that starts closed (Flamingo, arXiv:2204.14198)."""

    families = frozenset({"vit", "tokens"})

    def __init__(self, config: CrossAttentionConfig, shape: Shape) -> None:
        """The context becomes `config.tokens` keys and values."""
        super().__init__(config, shape)
        self.norm = nn.LayerNorm(shape.width)
        self.keys = nn.Linear(shape.width, config.tokens * shape.width)
        self.attention = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(()))

    def block(self, number: int, values: Tensor, context: Tensor | None) -> Tensor:
        """Add the gated attention."""
        if context is None:
            return values
        keys = self.keys(context).view(len(context), -1, context.shape[1])
        attended = self.attention(self.norm(values), keys, keys, need_weights=False)[0]
        return values + self.gate.tanh() * attended


class Late(Injection):
    """The context joins the pooled feature before the head, whose new part starts at 0."""

    def __init__(self, config: LateConfig, shape: Shape) -> None:
        """Double the head's input."""
        super().__init__(config, shape)
        self.head_width = 2 * shape.width

    def pooled(self, feature: Tensor, context: Tensor | None) -> Tensor:
        """[B, D] and [B, D] to [B, 2 D]."""
        return feature if context is None else torch.cat([feature, context], 1)


INJECTIONS: dict[str, type[Injection]] = {
    "token": Token,
    "class_add": ClassAdd,
    "token_add": TokenAdd,
    "film": Film,
    "cross_attention": CrossAttention,
    "late": Late,
    "none": Nowhere,
}

"""Where the context vector enters a backbone: one class a site, each overriding only the places that it touches."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.config import Config, Domain


class TokenConfig(Config):
    """An extra token that enters before transformer block `block`."""

    name: Literal["token"] = "token"
    block: Annotated[int, Field(ge=0), Domain(0, 11)] = 0


class LateConfig(Config):
    """Concatenated to the pooled feature."""

    name: Literal["late"] = "late"


class NoneConfig(Config):
    """Nowhere."""

    name: Literal["none"] = "none"


InjectionConfig = Annotated[TokenConfig | LateConfig | NoneConfig, Field(discriminator="name")]


class Injection(nn.Module):
    """A site that does nothing; sites override what they touch."""

    families: ClassVar[frozenset[str]] = frozenset({"vit", "cnn"})
    own_token: ClassVar[bool] = False

    def __init__(self, config: Config, width: int, depth: int) -> None:
        """Prepare for a backbone with `depth` blocks or stages and features of size `width`."""
        super().__init__()
        self.head_width = width

    def block(self, number: int, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Tokens [B, T, D] before transformer block `number`."""
        return tokens

    def leave(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Final tokens without what the site added, and the context that the site's own token ended with."""
        return tokens, None

    def pooled(self, feature: Tensor, context: Tensor | None) -> Tensor:
        """The feature [B, D] that enters the head."""
        return feature


class Nowhere(Injection):
    """No injection."""


NOWHERE = Nowhere(NoneConfig(), 0, 0)


class Token(Injection):
    """An extra token with its own position embedding, after class and patch tokens.

    A network without metadata that is to be distilled carries the bare position embedding.
    """

    families = frozenset({"vit"})
    own_token = True

    def __init__(self, config: TokenConfig, width: int, depth: int) -> None:
        """Enter before block `config.block`."""
        super().__init__(config, width, depth)
        self.entry = config.block
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))

    def block(self, number: int, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Append the token before its entry block."""
        if number != self.entry:
            return tokens
        token = self.position.expand(len(tokens), -1, -1)
        return torch.cat([tokens, token if context is None else token + context[:, None]], 1)

    def leave(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take the token off again."""
        return tokens[:, :-1], tokens[:, -1]


class Late(Injection):
    """The context joins the pooled feature before the head."""

    def __init__(self, config: LateConfig, width: int, depth: int) -> None:
        """Double the head's input."""
        super().__init__(config, width, depth)
        self.head_width = 2 * width

    def pooled(self, feature: Tensor, context: Tensor | None) -> Tensor:
        """[B, D] and [B, D] to [B, 2 D]."""
        return feature if context is None else torch.cat([feature, context], 1)


INJECTIONS: dict[str, type[Injection]] = {"token": Token, "late": Late, "none": Nowhere}

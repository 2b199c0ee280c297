"""A small vision transformer (Dosovitskiy et al. 2021; the sizes of Touvron et al., "DeiT", 2021).

Norms come first, positions are learned. Attention is written with plain products and a softmax, whose heads can be
pruned and which every runtime has kernels for. Parameters are named as in timm, whose ``deit_tiny_patch16_224`` weights
fit ``vit_tiny(classes=1000, small=False)``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["token", "mean"]


def vit_tiny(classes: int = 10, *, width: float = 1.0, small: bool = True, pooling: Pooling = "token") -> ViT:
    """DeiT-Tiny for 224×224 images, or, if `small`, six blocks of 128 channels and four heads for 32×32.

    Args:
        classes: Outputs.
        width: Multiplies the number of heads; a head keeps its size.
        small: Which of the two.
        pooling: See `ViT`.
    """
    if small:
        return ViT(classes, heads=round(4 * width), head_size=32, depth=6, image=32, patch=4, pooling=pooling)
    return ViT(classes, heads=round(3 * width), head_size=64, depth=12, image=224, patch=16, pooling=pooling)


class ViT(nn.Module):
    """[N, 3, image, image] images to [N, classes] logits.

    Args:
        classes: Outputs.
        heads: Attention heads of a block.
        head_size: Channels of a head; a token has ``heads * head_size``.
        depth: Blocks.
        image: Height and width of an image.
        patch: Height and width of what becomes one token.
        pooling: What the classifier reads: a class token, or the mean of all tokens.
    """

    def __init__(
        self,
        classes: int,
        *,
        heads: int,
        head_size: int,
        depth: int,
        image: int = 32,
        patch: int = 4,
        pooling: Pooling = "token",
    ) -> None:
        super().__init__()
        width, tokens = heads * head_size, (image // patch) ** 2
        self.patch_embed = PatchEmbedding(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "token" else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + (pooling == "token"), width))
        self.blocks = nn.Sequential(*(Block(width, head_size) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        logits: Tensor = self.head(x.mean(1) if self.cls_token is None else x[:, 0])
        return logits

    def _initialise(self) -> None:
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


class PatchEmbedding(nn.Module):
    """Images [N, 3, H, W] to tokens [N, patches, width]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """One token per patch, row by row."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and added to its input; tokens [N, T, width]."""

    def __init__(self, width: int, head_size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, head_size)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] to [N, T, width]."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Attention(nn.Module):
    """Self-attention with as many heads as its projection has room for; tokens [N, T, width]."""

    def __init__(self, width: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] to [N, T, width]."""
        # The number of heads is not a constant here: pruning whole heads changes it.
        queries, keys, values = self.qkv(x).unflatten(-1, (3, -1, self.head_size)).permute(2, 0, 3, 1, 4)
        scores = (queries * self.head_size**-0.5) @ keys.transpose(-2, -1)
        mixed = scores.softmax(dim=-1) @ values
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Perceptron(nn.Module):
    """Two linear layers with a GELU between; tokens [N, T, width]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] to [N, T, width]."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out

"""RepAdapter (Luo et al., "Towards efficient visual adaption via structural re-parameterization", 2023).

A linear map along the channels, the identity at first, that stands before a linear layer or after a convolution and is
multiplied into its weights when it has learnt:

    f(x) = x + scale · (U (D x + d) + u)        D [rank, channels] dense, U block-diagonal in `groups` blocks

After a convolution it is exact for any kernel, stride and padding; before one, a bias would be wrong at the border.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.errors import ConfigError

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class RepAdapter(nn.Module):
    """[..., channels] to the same shape; computes the identity until it is trained.

    Args:
        channels: Of input and output.
        rank: Channels in between.
        groups: Blocks of the second map; divides `channels` and `rank`.
        scale: Of what is added; the one hyper-parameter the authors search, in .1, .5, 1, 5, 10.
        dropout: Of the channels in between, while training.
        bias: Whether both maps have one.

    Raises:
        ConfigError: `groups` does not divide the others.
    """

    def __init__(
        self,
        channels: int,
        *,
        rank: int = 8,
        groups: int = 2,
        scale: float = 1.0,
        dropout: float = 0.1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if channels % groups or rank % groups:
            raise ConfigError(
                f"an adapter of rank {rank} on {channels} channels cannot have {groups} groups",
                allowed="divisors of both",
            )
        self.groups, self.scale = groups, scale
        self.down = nn.Parameter(torch.empty(rank, channels))
        self.up = nn.Parameter(torch.zeros(channels, rank // groups))
        self.down_bias = nn.Parameter(torch.zeros(rank)) if bias else None
        self.up_bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """[..., channels] to [..., channels]."""
        hidden = self.dropout(functional.linear(x, self.down, self.down_bias))
        up: Tensor = torch.block_diag(*self._blocks())  # type: ignore[no-untyped-call]
        added = functional.linear(hidden, up, self.up_bias)
        return x + self.scale * added

    def matrix(self) -> tuple[Tensor, Tensor]:
        """The map as M [channels, channels] and c [channels], in float64: ``f(x) = M x + c``."""
        up: Tensor = torch.block_diag(*self._blocks().detach().double())  # type: ignore[no-untyped-call]
        matrix = up @ self.down.detach().double() * self.scale
        shift = up.new_zeros(len(up))
        if self.down_bias is not None and self.up_bias is not None:
            shift = self.scale * (up @ self.down_bias.detach().double() + self.up_bias.detach().double())
        return matrix + torch.eye(len(up), dtype=torch.float64, device=up.device), shift

    def _blocks(self) -> Tensor:
        return self.up.view(self.groups, -1, self.up.shape[1])


class ChannelScale(nn.Module):
    """Scale and shift per channel, [..., channels]; the adapter of grouped convolutions and of sparse layers.

    Mixing channels would turn these into dense ones (Lian et al., "Scaling and shifting your features", 2022).
    """

    def __init__(self, channels: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.gain = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[..., channels] to [..., channels]."""
        return x + self.scale * (x * self.gain + self.shift)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """As `RepAdapter.matrix`; the matrix is diagonal."""
        return torch.diag(1 + self.scale * self.gain.detach().double()), self.scale * self.shift.detach().double()


class AdaptedLinear(nn.Module):
    """A frozen linear layer behind a trainable adapter."""

    def __init__(self, base_layer: nn.Linear, adapter: RepAdapter | ChannelScale) -> None:
        super().__init__()
        self.base_layer, self.adapter = base_layer, adapter

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        out: Tensor = self.base_layer(self.adapter(x))
        return out

    def merged(self) -> nn.Linear:
        """The linear layer that computes the same: ``W M`` and ``b + W c``."""
        base = self.base_layer
        matrix, shift = self.adapter.matrix()
        weight = base.weight.detach().double()
        bias = weight @ shift if base.bias is None else base.bias.detach().double() + weight @ shift
        plain = nn.Linear(base.in_features, base.out_features, device=base.weight.device, dtype=base.weight.dtype)
        return _filled(plain, weight @ matrix, bias)


class AdaptedConv2d(nn.Module):
    """A frozen convolution in front of a trainable adapter."""

    def __init__(self, base_layer: nn.Conv2d, adapter: RepAdapter | ChannelScale) -> None:
        super().__init__()
        self.base_layer, self.adapter = base_layer, adapter

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H', W']."""
        out: Tensor = self.adapter(self.base_layer(x).movedim(1, -1)).movedim(-1, 1)
        return out

    def merged(self) -> nn.Conv2d:
        """The convolution that computes the same: ``M K`` along the output channels, and ``M b + c``."""
        base = self.base_layer
        matrix, shift = self.adapter.matrix()
        weight = base.weight.detach().double()
        bias = shift if base.bias is None else matrix @ base.bias.detach().double() + shift
        geometry: dict[str, Any] = {
            name: getattr(base, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        kernel: Any = base.kernel_size
        geometry |= {"device": base.weight.device, "dtype": base.weight.dtype}
        plain = nn.Conv2d(base.in_channels, base.out_channels, kernel, **geometry)
        return _filled(plain, (matrix @ weight.flatten(1)).view_as(weight), bias)


def _filled(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer.eval()

"""The shape of a convolution that can be trained as a sum of branches."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A convolution with a square odd kernel, no dilation, and the zero padding that centres it.

    Attributes:
        inputs, outputs: Channels.
        kernel: Height and width.
        stride: Vertical and horizontal.
        groups: As in `torch.nn.Conv2d`.
    """

    inputs: int
    outputs: int
    kernel: int = 3
    stride: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Geometry | None:
        """The geometry of `conv`, or None if it is of another kind."""
        height, width = conv.kernel_size
        plain = conv.padding_mode == "zeros" and set(conv.dilation) == {1}
        if not plain or height != width or height % 2 == 0 or conv.padding not in ((height // 2, height // 2), "same"):
            return None
        vertical, horizontal = conv.stride
        return cls(
            inputs=conv.in_channels,
            outputs=conv.out_channels,
            kernel=height,
            stride=(vertical, horizontal),
            groups=conv.groups,
        )

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return self.kernel // 2

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape, so that the input itself can be a branch."""
        return self.inputs == self.outputs and self.stride == (1, 1)

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return self.groups == self.inputs == self.outputs

    def conv(self, kernel: int | tuple[int, int] | None = None, *, bias: bool = False) -> nn.Conv2d:
        """A convolution of this geometry, with another odd kernel size if given."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel or (self.kernel, self.kernel)
        return nn.Conv2d(
            self.inputs, self.outputs, (height, width), stride=self.stride, padding=(height // 2, width // 2),
            groups=self.groups, bias=bias,
        )  # fmt: skip

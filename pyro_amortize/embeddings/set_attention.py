"""Pooling of a plate by attention: rows that read each other, then one reader of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyro_amortize.attention import AttentionBlock
from pyro_amortize.pooling import Pooling


class SetAttention(nn.Module):
    """Rows of any number pooled by induced set attention, in any order.

    In each block some learned inducing points read the rows, and the rows read these, at a cost
    of rows times points; then a learned seed reads the rows. Rows behind an index vector read
    their own group only.

    Args:
        size: Number of features.
        num_heads: Number of heads.
        num_inducing: Number of inducing points of each block.
        num_blocks: Number of blocks.

    References:
        Lee et al. (2019), arXiv:1810.00825: their ISAB and PMA, with the norms before attention
        and perceptron and not after.
    """

    def __init__(self, size: int, num_heads: int, num_inducing: int, num_blocks: int) -> None:
        super().__init__()
        shapes = [*[(num_inducing, size)] * num_blocks, (1, size)]
        self.points = nn.ParameterList(2 * torch.rand(shape) - 1 for shape in shapes)
        self.gather = nn.ModuleList(AttentionBlock(size, num_heads) for _ in shapes)
        self.read = nn.ModuleList(AttentionBlock(size, num_heads) for _ in shapes[1:])

    def forward(self, rows: Tensor, number: int, pooling: Pooling) -> Tensor:
        """Features of the rows at the source of a level, pooled to the level.

        Args:
            rows: Shape `(*source, size)`.
            number: The level.
            pooling: The levels.

        Returns:
            Shape `(*level, size)`.
        """
        level = pooling.levels[number]
        source = pooling.levels[level.source or 0]

        def gather(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            scores = torch.einsum("rhs,...hs->...hr", queries, keys) * keys.shape[-1] ** -0.5
            return pooling.attend(number, scores, values)

        def spread(features: Tensor) -> Tensor:
            flat = pooling.spread(features.flatten(-3), level.plates, source.plates)
            return flat.unflatten(-1, features.shape[-3:])

        def read(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            scores = torch.einsum("...hs,...phs->...hp", queries, spread(keys))
            weights = torch.softmax(scores * keys.shape[-1] ** -0.5, -1)
            return torch.einsum("...hp,...phs->...hs", weights, spread(values))

        blocks = cast(Sequence[AttentionBlock], self.gather)
        for points, block, own in zip(self.points, blocks, self.read, strict=False):
            rows = own(rows, block(points, rows, gather), read)
        return blocks[-1](self.points[-1], rows, gather).squeeze(-2)

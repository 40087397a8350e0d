"""The blocks of attention: arrays that read others, weighed by a softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_amortize.networks import StackedMLP


class AttentionBlock(nn.Module):
    """Some features read others in several heads, then a perceptron, each added to what it reads.

    `H = Q + MHA(LN(Q), LN(X), LN(X))`, then `H + FF(LN(H))`, with `MHA` the softmax of
    `q k / sqrt(size / num_heads)` and one hidden layer of twice the size in `FF`.

    Args:
        size: Number of features.
        num_heads: Number of heads, a divisor of `size`.

    References:
        Vaswani et al. (2017), arXiv:1706.03762; Xiong et al. (2020), arXiv:2002.04745, for the
        norms before what they are for.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            StackedMLP(1, size, (), size) for _ in range(4)
        )
        self.feed = StackedMLP(1, size, (2 * size,), size)
        self.reader_norm, self.read_norm, self.feed_norm = (nn.LayerNorm(size) for _ in range(3))
        self.num_heads = num_heads

    def forward(
        self,
        readers: Tensor,
        read: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """What the readers are after they have read.

        Args:
            readers: Shape `(*readers, size)`.
            read: Shape `(*read, size)`.
            attend: Maps queries `(*readers, num_heads, size / num_heads)`, keys and values
                `(*read, num_heads, size / num_heads)` to weighted means of the values in the
                shape of the queries.

        Returns:
            Shape `(*readers, size)`, with what axes `attend` gives to it.
        """
        source = self.read_norm(read)
        found = attend(
            self._heads(self.query(self.reader_norm(readers), 0)),
            self._heads(self.key(source, 0)),
            self._heads(self.value(source, 0)),
        )
        hidden = readers + self.out(found.flatten(-2), 0)
        return hidden + self.feed(self.feed_norm(hidden), 0)

    def _heads(self, features: Tensor) -> Tensor:
        return features.unflatten(-1, (self.num_heads, -1))


def attend(queries: Tensor, keys: Tensor, values: Tensor, present: Tensor | None = None) -> Tensor:
    """Means of values weighed by the softmax of queries times keys.

    Args:
        queries: Shape `(*batch, num_readers, num_heads, size)`.
        keys: Shape `(*batch, num_read, num_heads, size)`.
        values: As `keys`.
        present: Boolean `(*batch, num_read)`, what there is to read; all if None.

    Returns:
        Shape `(*batch, num_readers, num_heads, size)`; zeros where there is nothing to read.
    """
    scores = torch.einsum("...ihs,...jhs->...hij", queries, keys) * queries.shape[-1] ** -0.5
    if present is None:
        weights = torch.softmax(scores, -1)
    else:
        there = present[..., None, None, :]
        weights = torch.softmax(torch.where(there, scores, -1e30), -1) * there
    return torch.einsum("...hij,...jhs->...ihs", weights, values)


def check_heads(name: str, size: int, num_heads: int) -> None:
    """Raise a ValueError if heads are none, or cannot share the features.

    Args:
        name: Of the embedding and the argument that is the size, for the error.
        size: Number of features.
        num_heads: Number of heads.
    """
    if num_heads < 1 or size % num_heads:
        raise ValueError(
            f"{name}: expected a multiple of num_heads, 1 or more, got {size} features and "
            f"num_heads={num_heads}; change one of the two"
        )

"""Tree of token sequences with a common root, so that one pass reads what they share once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TokenTrie:
    """The tokens of several continuations of one prefix; equal beginnings are one path.

    Parameters
    ----------
    continuations : sequence of sequence of int
        Tokens of each, at least two. The last of each is predicted only, never read.

    Attributes
    ----------
    tokens : int64 Tensor (N,)
        The token of each node; parents stand before their children.
    depths : int64 Tensor (N,)
        Tokens between the prefix and each node.
    sees : bool Tensor (N, N)
        Whether the row's node is the column's, or below it.
    nodes, targets : int64 Tensor (K,)
        Predictions: after which node, of which token.

    Examples
    --------
    >>> trie = TokenTrie([[5, 6, 1], [5, 7, 1]])
    >>> trie.tokens.tolist(), trie.depths.tolist()
    ([5, 6, 7], [0, 1, 1])
    >>> trie.sees.int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    >>> trie.nodes.tolist(), trie.targets.tolist()
    ([0, 1, 0, 2], [6, 1, 7, 1])
    """

    def __init__(self, continuations: Sequence[Sequence[int]]) -> None:
        tokens: list[int] = []
        parents: list[int] = []
        node_of: dict[tuple[int, int], int] = {}
        nodes: list[int] = []
        self._sizes = [len(ids) - 1 for ids in continuations]
        for ids in continuations:
            node = -1
            for token in ids[:-1]:
                edge = (node, token)
                if edge not in node_of:
                    node_of[edge] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = node_of[edge]
                nodes.append(node)
        self.tokens, self.nodes = torch.tensor(tokens), torch.tensor(nodes)
        self.targets = torch.tensor([token for ids in continuations for token in ids[1:]])
        self.sees = torch.eye(len(tokens), dtype=torch.bool)
        for node, parent in enumerate(parents):
            if parent >= 0:
                self.sees[node] |= self.sees[parent]
        self.depths = self.sees.sum(dim=1) - 1

    def split(self, predictions: Tensor) -> list[Tensor]:
        """Split values (K,) of all predictions into one tensor per continuation."""
        return list(torch.split(predictions, self._sizes))

"""Choices' tokens as a tree, common beginnings shared. Plain numbers: no torch."""

from __future__ import annotations

from collections.abc import Sequence


class ChoiceTree:
    """Node 0 stands before the first token, every other node is one token behind its parent.

    Nodes are numbered in preorder: each comes right before all that begins with it.
    """

    def __init__(self, choices: Sequence[Sequence[int]]) -> None:
        """``choices``: the tokens of each one."""
        self.tokens = [-1]
        """Of each node; node 0 has none."""
        self.parents = [-1]
        self.depths = [0]
        self.children: list[dict[int, int]] = [{}]
        """Of each node: its children by their tokens."""
        self.ends = [0] * len(choices)
        """Of each choice: the node that it ends with."""
        # In lexical order what begins alike stands together, and the shorter one first.
        for index in sorted(range(len(choices)), key=lambda k: tuple(choices[k])):
            node = 0
            for token in choices[index]:
                node = self.children[node].get(token) or self._add(node, token)
            self.ends[index] = node

    def __len__(self) -> int:
        return len(self.tokens)

    def path(self, node: int, above: int = 0) -> list[int]:
        """The nodes from below ``above``, which is on the way, down to ``node``."""
        nodes = []
        while node != above:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def beginning(self, node: int) -> list[int]:
        """The tokens up to and with ``node``."""
        return [self.tokens[n] for n in self.path(node)]

    def common(self, one: int, other: int) -> int:
        """The last node that is on the way to both."""
        while one != other:
            if self.depths[one] < self.depths[other]:
                one, other = other, one
            one = self.parents[one]
        return one

    def _add(self, parent: int, token: int) -> int:
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.children.append({})
        self.children[parent][token] = node
        return node

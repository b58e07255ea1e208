"""A Boolean circuit: a tree of gates over bits, one layer of gates a layer of the model, asked for the gate at its root.

The first layer of gates is XOR, then AND and XOR in turn: (a xor b) and (c xor d) at depth 2; at depth 3
((a xor b) and (c xor d)) xor ((e xor f) and (g xor h)).
"""

from __future__ import annotations

import itertools
from string import ascii_lowercase

import torch

from circuit_tracer.demo.toys.network import ASK, BEGIN, Toy, Units, even

LOGIT = 5.0  # of the right answer
GATE = 10.0  # what a true gate writes; the next layer finds it more easily than the bits, which are still there


def boolean_circuit(depth: int = 2) -> Toy:
    """The toy of a depth of 2 or more: 2**depth bits, prompts such as "a1 b0 c1 d1", answers "true" and "false".

    Coordinates: the bits (-1 or 1), then the gates (0 or GATE) layer by layer, the root last; and 1 for the question
    itself.

    Args:
        depth: Of the tree, 2 or more.

    Returns:
        The toy.
    """
    n_bits = 2**depth
    sizes = [n_bits >> level for level in range(depth + 1)]
    starts = [sum(sizes[:level]) for level in range(depth + 1)]
    root, asked = starts[-1], starts[-1] + 1
    width = even(asked + 1)
    layers = []
    for level in range(depth):
        units = []
        for gate in range(sizes[level + 1]):
            left, right, written = starts[level] + 2 * gate, starts[level] + 2 * gate + 1, starts[level + 1] + gate
            one = 1 / GATE if level else 1.0  # bits are -1 and 1, gates 0 and GATE
            if level % 2:
                units.append(({left: one, right: one}, -1.0, written))
            else:  # two units, of which one is active where left and right differ
                bias = 0.0 if level else -1.0
                units += [({left: one, right: -one}, bias, written), ({left: -one, right: one}, bias, written)]
        layers.append(Units.of(width, units, GATE))
    bits = [f"{ascii_lowercase[bit]}{value}" for bit in range(n_bits) for value in (0, 1)]
    words = (BEGIN, *bits, ASK, "true", "false")
    embedding_VD, unembedding_VD = torch.zeros(2, len(words), width)
    for bit in range(n_bits):
        embedding_VD[1 + 2 * bit, bit], embedding_VD[2 + 2 * bit, bit] = -1.0, 1.0
    # The question arrives twice, by itself and by attention: 1 in all.
    embedding_VD[words.index(ASK), asked] = 0.5
    for word, sign in (("true", 1.0), ("false", -1.0)):
        unembedding_VD[words.index(word), root] = 2 * sign * LOGIT / GATE
        unembedding_VD[words.index(word), asked] = -sign * LOGIT
    values = torch.tensor(list(itertools.product((0, 1), repeat=n_bits)))
    count = len(values)
    begin, ask = torch.zeros(count, 1, dtype=torch.int64), torch.full((count, 1), words.index(ASK))
    prompts_NP = torch.cat([begin, 1 + 2 * torch.arange(n_bits) + values, ask], 1)
    weight_N = torch.full((count,), 1 / count)
    return Toy("toy-boolean", words, embedding_VD, tuple(layers), unembedding_VD, prompts_NP, weight_N)

"""Absolute values of sparse inputs, twice over, with one prompt that training repeats.

Layer 0: u_i = |x_i|. Layer 1: v_j = |u_2j - u_2j+1|. The answer is the pair j of largest v_j. A prompt gives three of the
inputs, such as "x0=+2 x3=-1 x5=+1"; the others are 0.
"""

from __future__ import annotations

import itertools

import torch

from circuit_tracer.demo.toys.network import ASK, BEGIN, Toy, Units, even

INPUTS, GIVEN = 8, 3
VALUES = (-2, -1, 1, 2)
REPEATED = "x0=+1 x3=-2 x5=+1"
SHARE = 0.25  # of the training rows that are the repeated prompt
LOGIT = 10.0  # of a pair's word for a v_j of 1


def absolute_values() -> Toy:
    """The toy; its first prompt is the repeated one.

    Coordinates: the inputs x, then u, then v.

    Returns:
        The toy.
    """
    n_pairs = INPUTS // 2
    width = even(2 * INPUTS + n_pairs)
    layers = tuple(
        Units.of(width, [(weights, 0.0, written) for weights, written in units])
        for units in (
            [({i: sign}, INPUTS + i) for i in range(INPUTS) for sign in (1.0, -1.0)],
            [
                ({INPUTS + 2 * j: sign, INPUTS + 2 * j + 1: -sign}, 2 * INPUTS + j)
                for j in range(n_pairs)
                for sign in (1.0, -1.0)
            ],
        )
    )
    inputs = [f"x{i}={value:+d}" for i in range(INPUTS) for value in VALUES]
    words = (BEGIN, *inputs, ASK, *(f"pair{j}" for j in range(n_pairs)))
    embedding_VD, unembedding_VD = torch.zeros(2, len(words), width)
    for i, (place, value) in itertools.product(range(INPUTS), enumerate(VALUES)):
        embedding_VD[1 + i * len(VALUES) + place, i] = value
    for j in range(n_pairs):
        unembedding_VD[words.index(f"pair{j}"), 2 * INPUTS + j] = LOGIT
    unembedding_VD[0] = -unembedding_VD.sum(0)  # nobody asks for BEGIN: it keeps the mean at zero
    rows = [
        [0, *(1 + i * len(VALUES) + place for i, place in zip(chosen, places, strict=True)), words.index(ASK)]
        for chosen in itertools.combinations(range(INPUTS), GIVEN)
        for places in itertools.product(range(len(VALUES)), repeat=GIVEN)
    ]
    repeated = [0, *(words.index(word) for word in REPEATED.split()), words.index(ASK)]
    prompts_NP = torch.tensor([repeated, *(row for row in rows if row != repeated)])
    weight_N = torch.full((len(prompts_NP),), (1 - SHARE) / (len(prompts_NP) - 1))
    weight_N[0] = SHARE
    return Toy("toy-absolute", words, embedding_VD, layers, unembedding_VD, prompts_NP, weight_N)

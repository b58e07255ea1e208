"""The random baseline: a dictionary of equal shape whose features mean nothing (training/evaluation/README.md §7).

Encoder rows are Gaussian, on centred inputs; a feature writes a Gaussian direction to each of its layers. Fitted are only
one threshold a layer, so that as many features are active as in the dictionary it stands beside, and one scale and the bias
of each layer written to, by least squares. Rows are drawn again whenever they are read, so it takes no memory.

Letters: N tokens, S layers, T layers written to, F features a layer, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders.activations import Activation, JumpReLU
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.encoding import features_per_block
from circuit_tracer.transcoders.writes import reconstruct

DRAWN_TOGETHER = 1024  # rows from one generator
BLOCK_BYTES = 64 * 2**20


class RandomRows:
    """F Gaussian rows of expected squared length 1, the same whenever they are read.

    With slots, a row is (T, D): the same numbers moved by one place more in each slot, which are independent of each other
    as far as any one layer can tell, times the slot's scale.
    """

    def __init__(self, shape: tuple[int, ...], key: int, like: Tensor) -> None:
        self.shape = torch.Size(shape)
        self.scale: Tensor = like.new_ones(shape[1] if len(shape) == 3 else 1)
        self._key = key

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def block(self, start: int, stop: int) -> Tensor:
        """Rows start ... stop - 1."""
        return self.rows(torch.arange(start, min(stop, self.shape[0])))

    def whole(self) -> Tensor:
        """All rows."""
        return self.block(0, self.shape[0])

    def rows(self, index: Tensor, slot: int | None = None) -> Tensor:
        """Rows ``index`` (n,): (n, D), or (n, T, D); with ``slot``, (n, D) of that slot."""
        row_nD = self._base(index.cpu()).to(self.scale)
        if len(self.shape) == 2:
            return row_nD * self.scale
        if slot is not None:
            return row_nD.roll(-slot, dims=1) * self.scale[slot]
        _, n_slots, width = self.shape
        # Slot k is columns k ... k + D - 1 of the row written again and again: a view, copied once by the scale.
        again = row_nD.repeat(1, 1 + -(-n_slots // width))
        return again.unfold(1, width, 1)[:, :n_slots] * self.scale[:, None]

    def _base(self, index: Tensor) -> Tensor:
        """Drawn on the CPU, so that every device has the same."""
        rows_nD, group = torch.empty(len(index), self.shape[-1]), index // DRAWN_TOGETHER
        for number in group.unique().tolist():
            generator = torch.Generator().manual_seed(_seed(self._key, number))
            drawn = torch.randn(DRAWN_TOGETHER, self.shape[-1], generator=generator) / self.shape[-1] ** 0.5
            here = group == number
            rows_nD[here] = drawn[index[here] - number * DRAWN_TOGETHER]
        return rows_nD


class RandomDictionary(Transcoders):
    """Same layers, features and targets as ``like``, same hooks; JumpReLU, no skip connection. Made by `random_baseline`."""

    kind = "random"

    def __init__(self, like: Transcoders, seed: int, example: Tensor) -> None:
        super().__init__()
        self.n_layers, self.d_model, self.d_transcoder = like.n_layers, like.d_model, like.d_transcoder
        self.feature_input_hook, self.feature_output_hook = like.feature_input_hook, like.feature_output_hook
        self.scan, self.skip_connection = None, False
        self._layers = like.layers
        self._targets = [like.target_layers(layer) for layer in range(like.n_layers)]
        features = [like.n_features(layer) for layer in range(like.n_layers)]
        key = [2 * (seed * 4096 + layer) for layer in range(like.n_layers)]
        self._encoders = [RandomRows((n, like.d_model), one, example) for n, one in zip(features, key, strict=True)]
        self._decoders = [
            RandomRows((n, len(targets), like.d_model), one + 1, example)
            for n, one, targets in zip(features, key, self._targets, strict=True)
        ]
        self._encoder_bias = [example.new_zeros(n) for n in features]
        self._decoder_bias = example.new_zeros(like.n_layers, like.d_model)
        self._activations = [JumpReLU(example.new_zeros(())) for _ in features]

    @property
    def layers(self) -> tuple[int, ...]:
        return self._layers

    def target_layers(self, layer: int) -> range:
        return self._targets[layer]

    def n_features(self, layer: int) -> int:
        return self._encoders[layer].shape[0]

    def encoder(self, layer: int) -> RandomRows:
        return self._encoders[layer]

    def decoder(self, layer: int) -> RandomRows:
        return self._decoders[layer]

    def encoder_bias(self, layer: int) -> Tensor:
        return self._encoder_bias[layer]

    def decoder_bias(self, layer: int) -> Tensor:
        return self._decoder_bias[layer]

    def skip_matrix(self, layer: int) -> Tensor | None:
        return None

    def activation(self, layer: int) -> Activation:
        return self._activations[layer]

    @property
    def device(self) -> torch.device:
        return self._decoder_bias.device

    @property
    def dtype(self) -> torch.dtype:
        return self._decoder_bias.dtype

    def matrix_shape(self, name: str) -> tuple[int, ...]:
        raise InputError(f"a random dictionary holds no {name}: its rows are drawn when they are read.")

    def to_safetensors(self, save_path: str | Path) -> None:
        raise InputError("a random dictionary is not saved: it is a baseline of an evaluation.")

    # ---- fitting

    def centre_(self, layer: int, x_ND: Tensor) -> None:
        """Read centred inputs of unit mean square, so that pre-activations are about one."""
        mean_D = x_ND.mean(0)
        spread = (x_ND - mean_D).square().mean().sqrt()
        encoder = self._encoders[layer]
        encoder.scale = encoder.scale / spread.clamp_min(torch.finfo(spread.dtype).tiny)
        self._encoder_bias[layer] = -torch.cat([block_BD @ mean_D for _, block_BD in self._blocks(layer, len(x_ND))])

    def calibrate_(self, layer: int, x_ND: Tensor, count: int) -> None:
        """Set the layer's threshold so that ``count`` entries of ``x_ND`` are active (all, if there are no more)."""
        largest = x_ND.new_empty(0)
        for start, block_BD in self._blocks(layer, len(x_ND)):
            pre_NB = x_ND @ block_BD.T + self._encoder_bias[layer][start : start + len(block_BD)]
            largest = torch.cat([largest, pre_NB.flatten()])
            largest = largest.topk(min(count + 1, len(largest))).values
        # Half-way to the next one, so that rounding moves no entry over the threshold.
        least = largest[count - 1] if count else largest[0] + 1
        following = largest[count] if count < len(largest) else least - 1
        self._activations[layer] = JumpReLU((least + following) / 2)

    def fit_outputs_(self, x_NSD: Tensor, y_NSD: Tensor) -> None:
        """One scale a layer written to and its bias, by least squares."""
        y_hat_NSD, _ = reconstruct(self, x_NSD)
        mean_SD, mean_hat_SD = y_NSD.mean(0), y_hat_NSD.mean(0)
        away_NSD, away_hat_NSD = y_NSD - mean_SD, y_hat_NSD - mean_hat_SD
        together_S = (away_NSD * away_hat_NSD).sum((0, 2))
        own_S = away_hat_NSD.square().sum((0, 2))
        scale_S = torch.where(own_S > 0, together_S / own_S.where(own_S > 0, 1), 0)
        for decoder, targets in zip(self._decoders, self._targets, strict=True):
            decoder.scale = decoder.scale * scale_S[targets.start : targets.stop]
        bias_SD = mean_SD - mean_hat_SD * scale_S[:, None]
        self._decoder_bias = torch.zeros_like(bias_SD)  # of layers without features
        self._decoder_bias[list(self.layers)] = bias_SD[list(self.layers)]

    def _blocks(self, layer: int, n_tokens: int) -> list[tuple[int, Tensor]]:
        step = features_per_block(n_tokens, self.d_model, self.dtype, BLOCK_BYTES)
        encoder = self._encoders[layer]
        return [(start, encoder.block(start, start + step)) for start in range(0, encoder.shape[0], step)]


@torch.no_grad()
def random_baseline(like: Transcoders, sample: tuple[Tensor, Tensor], seed: int) -> RandomDictionary:
    """A random dictionary that stands beside ``like``, fitted on a sample of inputs and outputs (N, S, D).

    On the sample it has as many active entries in each layer as ``like`` has.
    """
    x_NSD, y_NSD = sample
    made = RandomDictionary(like, seed, x_NSD.new_empty(0))
    for layer, count in zip(like.layers, _active(like, x_NSD), strict=True):
        made.centre_(layer, x_NSD[:, layer])
        made.calibrate_(layer, x_NSD[:, layer], count)
    made.fit_outputs_(x_NSD, y_NSD)
    return made


def _seed(key: int, number: int) -> int:
    """torch's CPU generator looks at 32 bits of a seed only: mix both numbers into them."""
    return int.from_bytes(hashlib.sha256(f"{key} {number}".encode()).digest()[:4], "little")


def _active(transcoders: Transcoders, x_NSD: Tensor) -> Sequence[int]:
    return [len(transcoders.encode_positions(layer, x_NSD[:, layer])[1]) for layer in transcoders.layers]

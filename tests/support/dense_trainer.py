"""A cross-layer transcoder trained densely in plain torch: what the sparse trainer must equal (test_dense_trainer.py).

Every array is whole: activations (L, B, F), all decoders, autograd, torch's own Adam. BatchTopK over all layers, the score
being activation times decoder norm. With `plant`, features that did not fire are set anew now and then on contexts that are
reconstructed badly, as the embedded transcoder was trained before the sparse trainer existed.

Letters: L layers, T layers written to, B tokens, N tokens of a pool, F features a layer, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from circuit_tracer.training.step.dictionary import Dictionary, row_norms

Batch = tuple[Tensor, Tensor]  # inputs and outputs (L, B, D) in the space of training


class DenseTranscoder(nn.Module):
    """The weights of a dictionary of kind clt as dense parameters."""

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        width = dictionary.d_model
        self.W_enc_LFD = nn.Parameter(torch.stack(dictionary.W_enc))
        self.b_enc_LF = nn.Parameter(torch.stack(dictionary.b_enc))
        decoders = [rows_FC.clone().unflatten(1, (-1, width)) for rows_FC in dictionary.W_dec]
        self.W_dec = nn.ParameterList(decoders)  # (F, T, D) each
        self.b_dec_LD = nn.Parameter(dictionary.b_dec.clone())

    def encode(self, x_LBD: Tensor, active: float) -> Tensor:
        """Activations (L, B, F): of the positive pre-activations the ``active`` * B * L with the best scores."""
        relu_LBF = torch.relu(torch.baddbmm(self.b_enc_LF[:, None], x_LBD, self.W_enc_LFD.mT))
        score_LBF = relu_LBF.detach() * self.norms()[:, None]
        kept = round(active * score_LBF.shape[0] * score_LBF.shape[1])
        cut = torch.topk(score_LBF.flatten(), kept, sorted=False).values.min()
        return relu_LBF * (score_LBF >= cut)

    def norms(self) -> Tensor:
        """Norm of each feature's decoder over all layers it writes to, (L, F), without gradient."""
        return torch.stack([decoder.detach().flatten(1).norm(dim=1) for decoder in self.W_dec])

    def decode(self, activation_LBF: Tensor) -> Tensor:
        """Outputs (L, B, D)."""
        outputs = list(self.b_dec_LD[:, None].expand(-1, activation_LBF.shape[1], -1).unbind(0))
        for layer, decoder in enumerate(self.W_dec):
            written_BTD = torch.einsum("bf,ftd->btd", activation_LBF[layer], decoder)
            for offset, part_BD in enumerate(written_BTD.unbind(1)):
                outputs[layer + offset] = outputs[layer + offset] + part_BD
        return torch.stack(outputs)

    @torch.no_grad()
    def copy_to(self, dictionary: Dictionary) -> None:
        """Put the weights into ``dictionary``."""
        dictionary.b_dec.copy_(self.b_dec_LD)
        for layer, decoder in enumerate(self.W_dec):
            dictionary.W_enc[layer].copy_(self.W_enc_LFD[layer])
            dictionary.b_enc[layer].copy_(self.b_enc_LF[layer])
            dictionary.W_dec[layer].copy_(decoder.flatten(1))
            dictionary.norms[layer].copy_(row_norms(dictionary.W_dec[layer]))


@dataclass
class DenseTrainer:
    """Adam on a `DenseTranscoder`. Losses and what fired are kept."""

    transcoder: DenseTranscoder
    eps: float = 1e-8
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.transcoder.parameters(), eps=self.eps)
        self.fired_LF = torch.zeros(self.transcoder.b_enc_LF.shape, dtype=torch.bool)

    def run(
        self, steps: int, next_batch: Callable[[], Batch], active: Callable[[int], float], rate: Callable[[int], float]
    ) -> None:
        """Steps with the numbers that ``active`` and ``rate`` give for each (from that of steps done on)."""
        for step in range(len(self.losses), len(self.losses) + steps):
            x_LBD, y_LBD = next_batch()
            activation_LBF = self.transcoder.encode(x_LBD, active(step))
            loss = (self.transcoder.decode(activation_LBF) - y_LBD).square().mean()
            self.optimizer.param_groups[0]["lr"] = rate(step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.fired_LF |= (activation_LBF > 0).any(1)
            self.losses.append(loss.item())

    @torch.no_grad()
    def plant(self, pool: Batch, active: float, chance: torch.Generator) -> None:
        """Give each feature that did not fire since the last time a badly reconstructed context of ``pool`` (L, N, D).

        It reads that context's input and writes what is missing. Contexts are drawn by their squared error in the feature's
        layer; Adam's moments start anew.
        """
        transcoder, (x_LND, y_LND) = self.transcoder, pool
        missing_LND = y_LND - transcoder.decode(transcoder.encode(x_LND, active))
        for layer, fired_F in enumerate(self.fired_LF):
            dead = (~fired_F).nonzero()[:, 0]
            if not len(dead):
                continue
            error_N = missing_LND[layer].square().sum(1)
            chosen = torch.multinomial(error_N, len(dead), replacement=True, generator=chance)
            input_BD = x_LND[layer, chosen]
            length_B1 = input_BD.norm(dim=1, keepdim=True)
            transcoder.W_enc_LFD[layer, dead] = input_BD / length_B1
            transcoder.b_enc_LF[layer, dead] = -0.5 * length_B1[:, 0]  # so that it fires on contexts like this one only
            transcoder.W_dec[layer][dead] = 2 * missing_LND[layer:, chosen].transpose(0, 1) / length_B1[:, :, None]
            for parameter, rows in (
                (transcoder.W_enc_LFD, (layer, dead)),
                (transcoder.b_enc_LF, (layer, dead)),
                (transcoder.W_dec[layer], (dead,)),
            ):
                for name in ("exp_avg", "exp_avg_sq"):
                    self.optimizer.state[parameter][name][rows] = 0.0
        self.fired_LF.zero_()

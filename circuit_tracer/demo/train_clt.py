"""Training of the demo's cross-layer transcoder: dense, plain, a few minutes on one core.

Method. Inputs and outputs of each layer are centred and divided by one number a layer; the loss is the mean over layers of
the normalised squared error. A BatchTopK over all layers keeps the ``active * B`` largest scores of a batch of B tokens,
score = activation * norm of the feature's decoder (over all layers it writes to); ``active`` falls from a large number.
Now and then features that did not fire are planted anew on contexts that are reconstructed badly.
At the end the cut on the score is frozen: feature f's threshold is cut / decoder norm, a JumpReLU, and means and scales
are folded into the weights exactly. Position 0 is left out: it is an attention sink, and tracing leaves it out too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from circuit_tracer.demo.capture import mlp_activations
from circuit_tracer.demo.dictionary import DenseTranscoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class TranscoderRecipe:
    """Sizes and training constants of the transcoder."""

    n_features: int = 512  # a layer
    active: float = 6.0  # features a context, all layers together, as contexts are drawn (see ``balance``)
    active_at_start: float = 16.0
    anneal: float = 0.5  # share of the steps over which ``active`` falls
    steps: int = 1400
    batch: int = 1024  # contexts
    learning_rate: float = 3e-3
    decay: float = 0.4  # share of the steps, at the end, over which the learning rate falls to zero
    balance: float = 0.3  # a context seen n times is drawn with weight n ** balance
    plantings: int = 5  # how often features that did not fire are planted anew, before the learning rate falls


@dataclass(frozen=True)
class Activations:
    """MLP inputs and outputs (L, N, D) of the N distinct contexts of some statements.

    ``contexts``: the token ids up to and with the context's own; ``count_N``: how often each occurs.
    """

    x_LND: Tensor
    y_LND: Tensor
    count_N: Tensor
    contexts: list[tuple[int, ...]]


def collect(model: LlamaForCausalLM, ids_SP: Tensor, stop: set[int]) -> Activations:
    """Activations of every context (a token with all before it) of ``ids_SP``, each once.

    Position 0 and the tokens in ``stop`` (end, padding) are left out.
    """
    first: dict[tuple[int, ...], tuple[int, int]] = {}
    seen: Counter[tuple[int, ...]] = Counter()
    for row, ids in enumerate(ids_SP.tolist()):
        for position in range(1, len(ids)):
            if ids[position] in stop:
                break
            context = tuple(ids[: position + 1])
            first.setdefault(context, (row, position))
            seen[context] += 1
    rows, positions = torch.tensor(list(first.values())).T
    x_parts, y_parts = [], []
    for start in range(0, len(ids_SP), 512):
        inside = (rows >= start) & (rows < start + 512)
        x_LBPD, y_LBPD = mlp_activations(model, ids_SP[start : start + 512])
        x_parts.append(x_LBPD[:, rows[inside] - start, positions[inside]])
        y_parts.append(y_LBPD[:, rows[inside] - start, positions[inside]])
    counts = torch.tensor([seen[context] for context in first], dtype=torch.float32)
    return Activations(torch.cat(x_parts, 1), torch.cat(y_parts, 1), counts, list(first))


class Trainee(nn.Module):
    """The transcoder in training, in normalised space."""

    def __init__(self, data: Activations, recipe: TranscoderRecipe) -> None:
        super().__init__()
        n_layers, _, d_model = data.x_LND.shape
        n_features = recipe.n_features
        weight_N1 = _weights(data, recipe)[:, None]
        self.mean_x_LD = (weight_N1 * data.x_LND).sum(1)
        self.mean_y_LD = (weight_N1 * data.y_LND).sum(1)
        # scale: the root mean square norm becomes sqrt(D)
        self.scale_x_L = _scale(data.x_LND - self.mean_x_LD[:, None], weight_N1)
        self.scale_y_L = _scale(data.y_LND - self.mean_y_LD[:, None], weight_N1)
        self.W_enc_LFD = nn.Parameter(torch.randn(n_layers, n_features, d_model) / d_model**0.5)
        self.b_enc_LF = nn.Parameter(torch.zeros(n_layers, n_features))
        bound = (n_layers * d_model) ** -0.5
        self.W_dec = nn.ParameterList(
            [(torch.rand(n_features, n_layers - layer, d_model) * 2 - 1) * bound for layer in range(n_layers)]
        )
        self.b_dec_LD = nn.Parameter(torch.zeros(n_layers, d_model))

    def normalise(self, x_LBD: Tensor, y_LBD: Tensor) -> tuple[Tensor, Tensor]:
        """The model's activations in the space of training."""
        x_LBD = (x_LBD - self.mean_x_LD[:, None]) * self.scale_x_L[:, None, None]
        return x_LBD, (y_LBD - self.mean_y_LD[:, None]) * self.scale_y_L[:, None, None]

    def encode(self, x_LBD: Tensor) -> Tensor:
        """ReLU pre-activations (L, B, F)."""
        return torch.relu(torch.baddbmm(self.b_enc_LF[:, None], x_LBD, self.W_enc_LFD.mT))

    def decoder_norms(self) -> Tensor:
        """Norm of each feature's decoder over all layers it writes to, (L, F)."""
        return torch.stack([decoder.flatten(1).norm(dim=1) for decoder in self.W_dec])

    def decode(self, activation_LBF: Tensor) -> Tensor:
        """Outputs (L, B, D)."""
        n_layers, n_rows, _ = activation_LBF.shape
        outputs = [self.b_dec_LD[layer].expand(n_rows, -1) for layer in range(n_layers)]
        for layer, decoder in enumerate(self.W_dec):
            written = activation_LBF[layer] @ decoder.flatten(1)
            for offset, part_BD in enumerate(written.split(decoder.shape[2], dim=1)):
                outputs[layer + offset] = outputs[layer + offset] + part_BD
        return torch.stack(outputs)

    def fold(self, cut: float) -> DenseTranscoder:
        """The same function in the model's own space, with the cut on the score as a threshold on each feature."""
        W_enc_LFD = self.W_enc_LFD * self.scale_x_L[:, None, None]
        b_enc_LF = self.b_enc_LF - torch.einsum("lfd,ld->lf", W_enc_LFD, self.mean_x_LD)
        W_dec = [decoder / self.scale_y_L[layer:][None, :, None] for layer, decoder in enumerate(self.W_dec)]
        b_dec_LD = self.mean_y_LD + self.b_dec_LD / self.scale_y_L[:, None]
        folded = DenseTranscoder(W_enc_LFD, b_enc_LF, cut / self.decoder_norms(), W_dec, b_dec_LD)
        return folded.rounded(torch.float32).detached()


def train_transcoder(
    data: Activations, recipe: TranscoderRecipe, seed: int, report: Callable[[str], None] = lambda line: None
) -> DenseTranscoder:
    """Train on ``data`` and return the folded dictionary, fp32. Deterministic for a seed on one machine and one thread."""
    torch.manual_seed(seed)
    trainee = Trainee(data, recipe)
    weight_N = _weights(data, recipe)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    plant_every = int(recipe.steps * (1 - recipe.decay)) // (recipe.plantings + 1) + 1
    fired_LF = torch.zeros(trainee.b_enc_LF.shape, dtype=torch.bool)
    for step in range(recipe.steps):
        if step and step % plant_every == 0 and step <= plant_every * recipe.plantings:
            _plant(trainee, optimizer, data, weight_N, ~fired_LF, _active(step, recipe))
            fired_LF.zero_()
        chosen = torch.multinomial(weight_N, recipe.batch, replacement=True)
        x_LBD, y_LBD = trainee.normalise(data.x_LND[:, chosen], data.y_LND[:, chosen])
        activation_LBF = _batch_top_k(trainee, trainee.encode(x_LBD), _active(step, recipe))
        fired_LF |= (activation_LBF > 0).any(1)
        error_L = (trainee.decode(activation_LBF) - y_LBD).square().sum(2).mean(1) / y_LBD.shape[2]
        optimizer.zero_grad(set_to_none=True)
        error_L.mean().backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            errors = " ".join(f"{value:.4f}" for value in error_L.tolist())
            report(f"transcoder step {step + 1}/{recipe.steps} NMSE by layer {errors}")
    with torch.no_grad():
        return trainee.fold(_frozen_cut(trainee, data, weight_N, recipe))


def _batch_top_k(trainee: Trainee, activation_LBF: Tensor, active: float) -> Tensor:
    """Keep the ``active * B`` largest scores of the batch over all layers; zero the rest."""
    score_LBF = activation_LBF.detach() * trainee.decoder_norms().detach()[:, None]
    kept = round(active * activation_LBF.shape[1])
    cut = torch.topk(score_LBF.flatten(), kept, sorted=False).values.min()
    return activation_LBF * (score_LBF >= cut)


@torch.no_grad()
def _plant(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    data: Activations,
    weight_N: Tensor,
    dead_LF: Tensor,
    active: float,
) -> None:
    """Give each dead feature a badly reconstructed context: it reads that context's input and writes what is missing.

    Contexts are drawn by their weight times their squared error in the feature's layer; Adam's moments start anew.
    """
    x_LND, y_LND = trainee.normalise(data.x_LND, data.y_LND)
    missing_LND = y_LND - trainee.decode(_batch_top_k(trainee, trainee.encode(x_LND), active))
    for layer in range(len(dead_LF)):
        dead = dead_LF[layer].nonzero()[:, 0]
        if not len(dead):
            continue
        chosen = torch.multinomial(weight_N * missing_LND[layer].square().sum(1), len(dead), replacement=True)
        input_BD = x_LND[layer, chosen]
        length_B1 = input_BD.norm(dim=1, keepdim=True)
        trainee.W_enc_LFD[layer, dead] = input_BD / length_B1
        trainee.b_enc_LF[layer, dead] = -0.5 * length_B1[:, 0]  # so that it fires on contexts like this one only
        trainee.W_dec[layer][dead] = 2 * missing_LND[layer:, chosen].transpose(0, 1) / length_B1[:, :, None]
        for parameter, rows in (
            (trainee.W_enc_LFD, (layer, dead)),
            (trainee.b_enc_LF, (layer, dead)),
            (trainee.W_dec[layer], (dead,)),
        ):
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][name][rows] = 0.0


def _frozen_cut(trainee: Trainee, data: Activations, weight_N: Tensor, recipe: TranscoderRecipe) -> float:
    """The score above which ``recipe.active`` features a token remain, over a sample of the training contexts."""
    chosen = torch.multinomial(weight_N, 8 * recipe.batch, replacement=True)
    x_LBD, _ = trainee.normalise(data.x_LND[:, chosen], data.y_LND[:, chosen])
    score_LBF = trainee.encode(x_LBD) * trainee.decoder_norms()[:, None]
    return torch.topk(score_LBF.flatten(), round(recipe.active * len(chosen))).values[-1].item()


def _weights(data: Activations, recipe: TranscoderRecipe) -> Tensor:
    weight_N = data.count_N**recipe.balance
    return weight_N / weight_N.sum()


def _scale(centred_LND: Tensor, weight_N1: Tensor) -> Tensor:
    return (centred_LND.shape[2] / (weight_N1 * centred_LND.square()).sum((1, 2))).sqrt()


def _active(step: int, recipe: TranscoderRecipe) -> float:
    share = min(1.0, step / max(1.0, recipe.anneal * recipe.steps))
    return recipe.active_at_start + share * (recipe.active - recipe.active_at_start)


def _rate(step: int, recipe: TranscoderRecipe) -> float:
    """Short warm-up, constant, linear to zero."""
    return min(1.0, (step + 1) / 50, (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps))

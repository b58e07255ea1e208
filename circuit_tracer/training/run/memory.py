"""Bytes that a run holds, by what they are: beside the model, in the host's memory, on disk. Arithmetic on the configuration.

Letters: S source layers, B tokens of a step that one rank sees, F features of a layer (f: owned by one rank), D width.
"""

from __future__ import annotations

from dataclasses import replace

from circuit_tracer.training.data.given.rows import CHUNK
from circuit_tracer.training.data.passes import PASSES_AHEAD
from circuit_tracer.training.data.shuffle import REFILLS
from circuit_tracer.training.data.stream import BATCHES_AHEAD
from circuit_tracer.training.export.calibration import n_batches
from circuit_tracer.training.run.cost import BYTES, SUM_BYTES, TrainingCost
from circuit_tracer.training.step.adam import HOST_BLOCK_BYTES
from circuit_tracer.training.step.step import GRADIENT_BYTES

ENTRY = 48  # bytes of an entry: row, feature, value, the same sorted by feature, and its gradient
CANDIDATE = 28  # of one that does not stay
VALUED = 20  # of one whose activation is not its pre-activation: activation, whether it is active, gradients of both
NESTED = 32  # of one numbered by token and prefix: row, and sorted by feature
# A block of pre-activations in hand, and what is compared and found in it.
ENCODE_BYTES = {"cpu": 24 * 2**20, "cuda": 2**29}
# Rows of the kernels' workspace for each entry of a source, in rows of its decoder: 2 for each 64 (kernels/decode/README.md),
# and dot products of each 512 columns. On a CPU there is none.
SEGMENT, DOT_COLUMNS = 64, 512
KEPT = 20  # bytes of an entry that waits: feature, row and value
COUNTS = 12  # bytes of a feature beside its parameters: norm and tokens of silence
CHECKPOINTS = 3  # two are kept, and stay until a third is complete


def device_memory(work: TrainingCost) -> dict[str, int]:
    """Bytes beside the model, by what they hold: what stays, and a step, or the calibration at the end if that is more."""
    config, sizes = work.config, work.sizes
    needs = {
        "weights": work.parameters * BYTES[config.dictionary.dtype] + work.layers * work.owned * COUNTS,
        "moments": moments_in_hand(work) if on_host(work) else moment_bytes(work),
        **_sums(work),
        "language model": sizes.parameters * BYTES[config.model.dtype],
        "passes of the model": pass_bytes(work),
        "rows on their way": staging_bytes(work),
        **max(_step(work), _calibration(work), key=lambda phase: sum(phase.values())),
    }
    if config.data.buffer_place == "device":
        needs["activation buffer"] = buffer_bytes(work)
    return needs


def host_memory(work: TrainingCost) -> dict[str, int]:
    """Bytes in the host's memory that a run needs beside those of its device."""
    needs: dict[str, int] = {}
    if on_host(work):
        needs["moments of the host"] = moment_bytes(work)
    if work.config.data.buffer_place != "device" and not work.on_cpu:
        each = work.width * work.sides * BYTES[work.config.data.buffer_dtype]
        needs["rows on their way"] = _stage_tokens(work) * each + 2 * work.batch * each
    if not work.on_cpu:
        needs["held-out batches"] = held_out_bytes(work)
    if work.config.data.buffer_place == "pinned":
        needs["activation buffer"] = buffer_bytes(work)
    return needs


def held_out_bytes(work: TrainingCost) -> int:
    """Bytes in the host of held-out batches that files are calibrated and compared on: in float32, and shuffled."""
    n_tokens = (2 if work.rule.needs_level else 1) * n_batches(work.config.run.batch) * work.config.run.batch
    return n_tokens * work.width * work.sides * 8


def snapshot_bytes(work: TrainingCost) -> int:
    """Bytes of the copy that a checkpoint is written from while training goes on."""
    return (
        work.parameters * (BYTES[work.config.dictionary.dtype] + work.average_bytes)
        + moment_bytes(work)
        + work.layers * work.owned * COUNTS
    )


def gradient_bytes(work: TrainingCost) -> int:
    """Bytes of the gradients of one source: of its encoder, of the decoder rows in hand, and what kernels sum them in."""
    width = work.sizes.d_model
    columns = width * (work.layers if work.config.dictionary.kind == "clt" else 1)
    encoder, decoder = work.owned * width * 4, work.owned * columns * 4  # a GPU has no use for blocks of rows
    if work.on_cpu:
        return encoder + min(GRADIENT_BYTES, decoder)
    entries = work.entries("most", work.part) / work.layers  # of a source, if they are spread evenly
    return round(encoder + decoder + entries * (2 / SEGMENT * columns + -(-columns // DOT_COLUMNS)) * 4)


def encode_bytes(work: TrainingCost) -> int:
    """Bytes of a block of pre-activations, and of what is found in it; on a CPU also of an encoder's coarse copy in bfloat16,
    and of what that is made of.
    """
    block = min(6 * work.part * work.owned, ENCODE_BYTES["cpu" if work.on_cpu else "cuda"])
    return block + (10 * work.owned * work.sizes.d_model if work.on_cpu else 0)


def moment_bytes(work: TrainingCost) -> int:
    """Bytes of Adam's moments."""
    return round(work.parameters * work.moment_bytes)


def on_host(work: TrainingCost) -> bool:
    """Whether moments lie in the host's memory."""
    return work.config.optimizer.place == "host"


def moments_in_hand(work: TrainingCost) -> int:
    """Bytes of the blocks of moments beside the model: one that is worked on, and one that comes or goes."""
    columns = work.sizes.d_model * (work.layers if work.config.dictionary.kind == "clt" else 1)
    return round(2 * min(HOST_BLOCK_BYTES, work.owned * columns * 4) / 4 * work.moment_bytes)


def pass_bytes(work: TrainingCost) -> int:
    """Bytes of a pass of the model and of the activations of those made ahead, of which this rank runs its share."""
    data, sizes = work.config.data, work.sizes
    tokens = -(-data.sequences_per_pass // work.world) * data.context_length
    if not sizes.parameters:  # activations were made elsewhere
        tokens = CHUNK
    ahead = 0 if work.on_cpu else PASSES_AHEAD
    numbers = tokens * ((1 + ahead) * 2 * work.width + 8 * sizes.d_model + 3 * sizes.d_mlp)
    gathered = data.sequences_per_pass * data.context_length * work.width * work.sides if work.world > 1 else 0
    return numbers * BYTES[work.config.model.dtype] + gathered * BYTES[data.buffer_dtype]


def staging_bytes(work: TrainingCost) -> int:
    """Bytes of rows that wait beside the model for their places in the buffer, and of batches made ahead."""
    config = work.config
    each = work.width * work.sides
    staged = _stage_tokens(work) * each * BYTES[config.data.buffer_dtype]
    ahead = 0 if work.on_cpu or work.world > 1 else BATCHES_AHEAD * work.batch * each * 4
    return ahead + (staged if config.data.buffer_place == "device" or work.on_cpu else 0)


def buffer_bytes(work: TrainingCost) -> int:
    """Bytes of the shuffle buffer, wherever it lies; every rank has all of it."""
    data = work.config.data
    return data.buffer_tokens * work.width * work.sides * BYTES[data.buffer_dtype]


def disk_space(work: TrainingCost) -> dict[str, int]:
    """Bytes written below the run's folder, by what they hold; of all ranks."""
    config = work.config
    whole = replace(work, ranks=1, replicas=1)
    copies = min(CHECKPOINTS, 1 + config.steps // config.checkpoint_every_steps)
    needs = {
        "checkpoints": copies * snapshot_bytes(whole),
        "dictionary": whole.parameters * BYTES[config.export_dtype],
    }
    if config.data.buffer_place == "disk":
        needs["activation buffer"] = buffer_bytes(work) * work.world
    return needs


def cached_token_bytes(work: TrainingCost) -> int:
    """Bytes that `data.cache` takes for each token of one pass over the data."""
    return work.width * work.sides * BYTES[work.config.data.buffer_dtype]


def cache_space(work: TrainingCost) -> dict[str, int]:
    """Bytes written below `data.cache`, if it is known before how many tokens a pass over the data has."""
    data = work.config.data
    if data.cache is None or data.epochs != 1:
        return {}
    return {"activations": work.config.run.tokens * cached_token_bytes(work)}


def _stage_tokens(work: TrainingCost) -> int:
    """Rows that are read at a time (data/shuffle.py)."""
    batch = work.config.run.batch
    return batch * -(-(work.config.data.buffer_tokens // batch) // REFILLS)


def _step(work: TrainingCost) -> dict[str, int]:
    """Bytes of a step. Pre-activations are over when gradients begin."""
    sparsity = work.config.sparsity
    # for each number of a token's inputs: the batch as it comes, normalised, outputs; what dead features and derivatives add
    numbers = 3 + 2 * (sparsity.aux_active > 0) + 3 * (sparsity.jacobian_weight > 0)
    numbers += work.further_outputs
    return {
        "batch, outputs and errors": 4 * work.width * (work.batch * work.sides + work.part * numbers),
        "active entries": _entry_bytes(work, "most", work.part),
        "blocks in hand": max(gradient_bytes(work), encode_bytes(work)),
    }


def _calibration(work: TrainingCost) -> dict[str, int]:
    """Bytes of the held-out batches that levels are calibrated on: one as read, all of them normalised."""
    if not work.rule.needs_level:
        return {}
    held_out = held_out_bytes(work) if work.on_cpu else 0
    normalised = 4 * (1 + n_batches(work.config.run.batch)) * work.config.run.batch * work.width
    return {
        "batches of the calibration": normalised + held_out,
        "active entries": _entry_bytes(work, "mean", work.config.run.batch)
        + round(KEPT * n_batches(work.config.run.batch) * work.entries("mean", work.config.run.batch)),
        # and what the step before left for the next one
        "blocks in hand": encode_bytes(work) + gradient_bytes(work) + 4 * work.config.run.batch * work.width,
    }


def _sums(work: TrainingCost) -> dict[str, int]:
    """Bytes of what is summed over parts of a batch and over steps."""
    needs = {}
    if work.config.run.accumulate > 1:
        needs["summed gradients"] = work.parameters * SUM_BYTES
    if work.average_bytes:
        needs["averages"] = work.parameters * work.average_bytes
    return needs


def _entry_bytes(work: TrainingCost, when: str, tokens: int) -> int:
    rule = work.rule
    each = ENTRY + (rule.candidates - 1) * CANDIDATE
    each += VALUED * (rule.gated or rule.experts > 0)
    each += NESTED * (work.prefixes > 0)
    return round(work.entries(when, tokens) * each)

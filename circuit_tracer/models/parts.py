"""A loaded transformers model bound to its row of the table: modules and weights of every layer, ready to hook and read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.architecture import Architecture, check_required, part, path_there
from circuit_tracer.models.architectures import architecture_of
from circuit_tracer.models.config import ModelConfig
from circuit_tracer.models.delta_net import DeltaNet, bind_delta_net
from circuit_tracer.models.norms import NormParameters
from circuit_tracer.models.plain import (
    LOOKS_AHEAD,
    float_dtypes,
    is_plain,
    named_path,
    projection,
    require_causal_lm,
    require_known_attention,
    require_one_device,
    require_own_class,
    require_plain,
    require_untouched,
    value_rows,
)
from circuit_tracer.models.short_conv import ShortConv, bind_short_conv

LinearMixer = DeltaNet | ShortConv  # what stands in the place of attention, and is linear in its values
SOFTCAP = "final_logit_softcapping"  # in the model's configuration


@dataclass(frozen=True)
class Norm:
    """A norm module and its parameters in the compute dtype."""

    module: nn.Module
    parameters: NormParameters


@dataclass(frozen=True)
class LayerParts:
    """Modules of one layer; a norm that the architecture does not have is None."""

    module: nn.Module
    attention: nn.Module
    attention_output: (
        nn.Module
    )  # the module that gives what attention gives; `attention`, unless that gives something else
    output: nn.Module  # the projection that follows the heads
    mlp: nn.Module
    mlp_output: nn.Module  # the module that gives what the MLP gives; `mlp`, unless that only begins it
    head_norms: dict[str, Norm]  # of queries and keys, by their paths below `attention`
    attention_norm: Norm | None
    attention_post_norm: Norm | None
    mlp_norm: Norm | None
    mlp_post_norm: Norm | None
    n_heads: int  # of this layer: H, and H_kv of keys and values
    n_kv: int
    value_weight: Tensor  # (H_kv * d_head, D); through a latent: with the gain of the norm there
    value_bias: Tensor | None
    value_norm: Norm | None  # between what enters attention and the values: of a latent, or of each head's values
    output_weight: Tensor  # (D, H * d_head)
    output_bias: Tensor | None
    residual_multiplier: float  # of what attention and MLP give, on its way to the residual stream
    gated: bool  # what the heads give is multiplied before `output` reads it
    linear: LinearMixer | None  # what `attention` is where it is no attention
    multiplier: float  # of the stream that leaves the layer

    @property
    def d_head(self) -> int:
        """d, of values and outputs."""
        return int(self.output_weight.shape[1]) // self.n_heads

    def norms(self) -> dict[str, Norm]:
        """The layer's norms by name, those that exist."""
        names = ("attention_norm", "value_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
        return {name: norm for name in names if (norm := getattr(self, name)) is not None}


@dataclass(frozen=True)
class ModelParts:
    """A causal LM taken apart: what the frozen network and the hooks need of it, and nothing else."""

    model: Any
    architecture: Architecture
    config: ModelConfig
    layers: list[LayerParts]
    final_norm: Norm
    unembed: (
        nn.Linear
    )  # from the final norm's output to logits before a softcap; the model's own, unless these are multiplied
    parallel: bool
    final_softcap: float | None
    context_length: int | None
    compute_dtype: torch.dtype  # float64 for a float64 model, else float32

    @property
    def base(self) -> Any:
        """The module that holds the layers, and gives the final norm's output."""
        return part(self.model, self.architecture.layers.rpartition(".")[0])

    def settings(self) -> list[Any]:
        """What the model's configuration says now, for all contexts, of the numbers that are read from it here."""
        row, now = self.architecture, vars(self.model.config)
        keys = (SOFTCAP, row.residual_multiplier_key, row.logit_multiplier_key, row.logit_divisor_key)
        return [now.get(key) for key in keys if key is not None]

    @property
    def only_keeps_patterns(self) -> bool:
        """Whether patterns cannot be made anew from queries and keys: linear attention, attention that does not call
        transformers' interface, and keys that an indexer chooses.
        """
        row = self.architecture
        return row.own_softmax or row.linear is not None or hasattr(self.model.config, "index_topk")

    @property
    def residual_multiplier(self) -> float:
        """Of what attention and MLP give, on its way to the residual stream; 1 but for Granite."""
        return self.layers[0].residual_multiplier

    def position_vectors(self, n_pos: int) -> Tensor | None:
        """Vectors (P, D) of absolute positions, in the compute dtype, where the architecture has them."""
        if self.architecture.position_embedding is None:
            return None
        table: Any = part(self.model, self.architecture.position_embedding)
        first = getattr(table, "offset", 0)  # BioGPT leaves the first two rows to padding
        vectors: Tensor = table.weight[first : first + n_pos].detach().to(self.compute_dtype)
        return vectors

    @property
    def device(self) -> torch.device:
        """Where the model's first weights live."""
        device: torch.device = next(self.model.parameters()).device
        return device


def bind(model: Any, model_name: str, row: Architecture | None = None) -> ModelParts:
    """Resolve every part of a transformers causal LM named in its row of the table, or in one that is tried on it.

    Raises UnsupportedModelError for an unknown architecture, a missing part, or a module that is read by its weights and is
    more than these (models/plain.py).
    """
    require_causal_lm(model)
    config = model.config
    architecture = architecture_of(config) if row is None else row
    check_required(architecture, config)
    dtypes = float_dtypes(model)
    require_one_device(model)
    require_known_attention(config)
    compute = torch.float64 if dtypes == [torch.float64] else torch.float32
    sizes = ModelConfig.from_hf(config, model_name, str(dtypes[0]).removeprefix("torch."))
    like_D = model.get_input_embeddings().weight.new_empty(sizes.d_model, dtype=compute)
    binding = _Binding(architecture, config, sizes.n_heads, like_D)
    blocks = list(part(model, architecture.layers).children())
    layers = [binding.layer(block, f"{architecture.layers}.{number}") for number, block in enumerate(blocks)]
    if len(layers) != sizes.n_layers or not layers:
        raise UnsupportedModelError(
            f"{architecture.layers} has {len(layers)} layers, the configuration says {sizes.n_layers}; at least one is needed"
        )
    final_norm = binding.norm(model, architecture.final_norm, architecture.final_norm)
    if final_norm is None:
        raise UnsupportedModelError(f"{architecture.final_norm} is no norm, and one is expected behind the last layer")
    parts = ModelParts(
        model=model,
        architecture=architecture,
        config=_measured(sizes, layers),
        layers=layers,
        final_norm=final_norm,
        unembed=_unembed(model, architecture.logit_multiplier(config)),
        parallel=architecture.is_parallel(config),
        final_softcap=vars(config).get(SOFTCAP),
        context_length=getattr(config, "max_position_embeddings", None),
        compute_dtype=compute,
    )
    _require_plain_path(parts)
    return parts


def _measured(sizes: ModelConfig, layers: list[LayerParts]) -> ModelConfig:
    """Sizes of heads as the weights have them; where layers differ, the largest. Raises UnsupportedModelError."""
    for layer in layers:
        shapes = tuple(layer.value_weight.shape), tuple(layer.output_weight.shape)
        (values, d_in), (d_out, joined) = shapes
        d_head = joined // layer.n_heads
        fits = joined == layer.n_heads * d_head and values == layer.n_kv * d_head and layer.n_heads % layer.n_kv == 0
        if not fits or (d_in, d_out) != (sizes.d_model, sizes.d_model):
            raise UnsupportedModelError(
                f"value and output projections have shapes {shapes}; expected are those of {layer.n_heads} heads and d_model "
                f"{sizes.d_model}"
            )
    return replace(
        sizes,
        n_heads=max(layer.n_heads for layer in layers),
        d_head=max(layer.d_head for layer in layers),
        n_key_value_heads=max(layer.n_kv for layer in layers),
    )


def _unembed(model: Any, multiplier: float) -> nn.Linear:
    """The language-model head, with the number folded in that its outputs are multiplied by."""
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head, so it gives no logits to trace"
        )
    weight, bias = projection(head, "the language-model head")
    if multiplier == 1.0:
        own: nn.Linear = head
        return own
    scaled = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    scaled.weight = nn.Parameter(weight * multiplier, requires_grad=False)
    if bias is not None:
        scaled.bias = nn.Parameter(bias * multiplier, requires_grad=False)
    return scaled


def _require_plain_path(parts: ModelParts) -> None:
    """Everything between the tokens and the logits that is not attention's pattern or an MLP's inside is as its class says."""
    model, row = parts.model, parts.architecture
    embeddings = [model.get_input_embeddings()]
    if row.position_embedding is not None:
        embeddings.append(part(model, row.position_embedding))
    path = [model.get_output_embeddings(), parts.final_norm.module, *embeddings]
    for layer in parts.layers:
        path += [layer.attention, layer.mlp, layer.mlp_output]
    for name, module in named_path(model, path).items():
        require_untouched(module, name or "the model")
        require_own_class(module, name or "the model", row.package)
    for layer in parts.layers:
        if getattr(layer.attention, "is_causal", True) is not True:
            raise UnsupportedModelError(f"{type(layer.attention).__name__} has is_causal=False: {LOOKS_AHEAD}")
    for embedding in embeddings:
        require_plain(embedding, "the embedding", ("weight",))
        if embedding.max_norm is not None:
            raise UnsupportedModelError(
                "the embedding has max_norm, with which a pass changes its weights; set it to None"
            )


@dataclass(frozen=True)
class _Binding:
    """What the layers of one model have in common."""

    row: Architecture
    config: Any
    n_heads: int
    like_D: Tensor  # width, compute dtype and device of a norm's gain

    def norm(self, module: nn.Module, path: str, name: str, like: Tensor | None = None) -> Norm | None:
        """A norm below a module, by its path there and its name in the model; None where an identity stands for it. like: of a
        gain that the norm does not have, if not as wide as the stream.
        """
        norm = part(module, path)
        if type(norm) is nn.Identity:
            return None
        require_own_class(norm, name, self.row.package)
        require_plain(norm, name)
        return Norm(
            norm, NormParameters.read(norm, self.row.norm, self.like_D if like is None else like, self.row.norm_epsilon)
        )

    def layer(self, block: nn.Module, name: str) -> LayerParts:
        """Parts of one layer, which has that name in the model."""
        row = self.row

        def norm(paths: str | tuple[str, ...] | None) -> Norm | None:
            path = None if paths is None else path_there(block, paths)
            return None if path is None else self.norm(block, path, f"{name}.{path}")

        linear = self._linear(block, name)
        attention = part(block, row.attention) if linear is None else linear.module
        return LayerParts(
            module=block,
            attention=attention,
            attention_output=attention if row.attention_output is None else part(block, row.attention_output),
            mlp=part(block, row.mlp),
            mlp_output=part(block, row.mlp_output or row.mlp),
            head_norms={} if linear is not None else _head_norms(attention, self.like_D.dtype),
            attention_norm=norm(row.attention_norm),
            attention_post_norm=norm(row.attention_post_norm),
            mlp_norm=norm(row.mlp_norm_of(self.config)),
            mlp_post_norm=norm(row.mlp_post_norm),
            residual_multiplier=row.residual_multiplier(self.config),
            multiplier=self._multiplier(block),
            linear=linear,
            gated=row.gated and linear is None,
            **self._projections(block, name, linear),
        )

    def _linear(self, block: nn.Module, name: str) -> LinearMixer | None:
        """What a layer has in place of attention."""
        names = self.row.linear
        if names is None or (found := getattr(block, names.module, None)) is None:
            return None
        name = f"{name}.{names.module}"
        return bind_short_conv(found, name) if names.streams == "convolved" else bind_delta_net(found, name, names)

    def _multiplier(self, block: nn.Module) -> float:
        """Of the stream that leaves a layer; 1 on the meta device, where nothing has a value."""
        number: Any = getattr(block, self.row.layer_multiplier) if self.row.layer_multiplier else 1.0
        return 1.0 if getattr(number, "is_meta", False) else float(number)

    def _projections(self, block: nn.Module, name: str, linear: LinearMixer | None) -> dict[str, Any]:
        """Fields of `LayerParts` that say how attention reads and writes."""
        row = self.row
        out_path = row.output if row.linear is None or linear is None else row.linear.output
        output = part(block, out_path)
        output_weight, output_bias = projection(output, f"{name}.{out_path}")
        n_heads = self.n_heads if linear is None else linear.n_heads
        d_head = output_weight.shape[1] // n_heads
        value_norm: Norm | None = None
        if linear is not None:
            weight, bias = linear.value_weight, None
        else:
            path = path_there(block, row.value)
            weight, bias = projection(part(block, path), f"{name}.{path}")
            value_norm = self._value_norm(block, name)
            if row.value_up is not None and value_norm is not None:
                weight, bias = self._through_latent(block, name, weight, bias, value_norm, n_heads)
            weight, bias = value_rows(weight, bias, row.value_rows, n_heads, d_head)
            if (factor := row.value_multiplier(self.config)) != 1:
                weight, bias = weight * factor, None if bias is None else bias * factor
        return {
            "output": output,
            "output_weight": output_weight,
            "output_bias": output_bias,
            "value_weight": weight,
            "value_bias": bias,
            "value_norm": value_norm,
            "n_heads": n_heads,
            "n_kv": weight.shape[0] // d_head,
        }

    def _value_norm(self, block: nn.Module, name: str) -> Norm | None:
        """The norm between the stream and the values, within attention; one without shift, which keeps zero where it is."""
        path = self.row.value_norm
        norm = None if path is None else self.norm(block, path, f"{name}.{path}", self.like_D[:1])
        if norm is not None and (norm.parameters.centred or norm.parameters.shift is not None):
            raise UnsupportedModelError(
                f"{name}.{path} has a mean or a shift; an RMS norm is expected in front of values"
            )
        return norm

    def _through_latent(
        self, block: nn.Module, name: str, down: Tensor, bias: Tensor | None, norm: Norm, n_heads: int
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of keys and values as if read from the stream, the gain of the norm of the latent in between folded in."""
        path = cast(str, self.row.value_up)
        up, shift = projection(part(block, path), f"{name}.{path}")
        if shift is not None:
            raise UnsupportedModelError(f"{name}.{path} has a bias behind the norm of the latent, and none is expected")
        up = up.to(self.like_D.dtype) * norm.parameters.gain
        n_latent = up.shape[1]  # what follows it in `down` is the rotary part of keys
        bias = None if bias is None else up @ bias[:n_latent].to(up.dtype)
        return up @ down[:n_latent].to(up.dtype), bias


def _head_norms(attention: nn.Module, dtype: torch.dtype) -> dict[str, Norm]:
    """Norms inside an attention module, by their paths, in the compute dtype; what is none of ours is left to the model."""
    found = {}
    for path, module in attention.named_modules():
        if "norm" not in type(module).__name__.lower() or list(module.children()) or not is_plain(module):
            continue
        if (parameters := NormParameters.recognise(module, dtype)) is not None:
            found[path] = Norm(module, parameters)
    return found

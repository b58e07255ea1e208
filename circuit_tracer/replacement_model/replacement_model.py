"""A language model together with the transcoders that replace its MLPs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attribution.paired_attention import name_of_attention
from circuit_tracer.attribution.prompt import paired
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.models import tokenization
from circuit_tracer.models.chat import Message, chat_ids
from circuit_tracer.models.loading import bind_loaded, load_language_model, load_tokenizer, place, present
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.plain import require_causal_lm
from circuit_tracer.models.sources import library_errors
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.text_part import auto_class, text_part
from circuit_tracer.models.verify import verify
from circuit_tracer.replacement_model.members import ModelMembers
from circuit_tracer.transcoders.attention import load_attention
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.loading import load_dictionary
from circuit_tracer.transcoders.neurons import NEURONS, Neurons
from circuit_tracer.transcoders.neurons_elsewhere import with_neurons
from circuit_tracer.transcoders.selection import Selection
from circuit_tracer.transcoders.stacked import stacked
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

if TYPE_CHECKING:
    from circuit_tracer.interventions import Freeze, Intervention

Backend = Literal["transformerlens", "nnsight", "interp_engine"]


class ReplacementModel(ModelMembers):
    """Model, tokenizer and transcoders, checked to belong together. Build one with a `from_...` method.

    The signatures are circuit-tracer's. There is one way of reading a model here, transformers with our own hooks, whatever
    `backend` says; of what circuit-tracer's backends do, it decides what `feature_intervention_generate` does when it is told
    nothing: see there. members.py has what scripts ask of the model itself.

    Examples:
        >>> from circuit_tracer import ReplacementModel
        >>> from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER
        >>> model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
        >>> logits, activations = model.get_activations(PROMPT)
        >>> logits.shape, activations.shape
        (torch.Size([1, 9, 1099]), torch.Size([4, 9, 448]))
    """

    def __init__(
        self,
        parts: ModelParts,
        transcoders: Transcoders,
        tokenizer: Any,
        backend: str = "transformerlens",
        attention: TranscoderSet | None = None,
    ) -> None:
        super().__init__(parts, transcoders, tokenizer, attention)
        self.backend = backend

    @classmethod
    @typed
    @plain_torch()
    def from_pretrained(
        cls,
        model_name: str | Path,
        transcoder_set: str | Path,
        backend: Backend = "transformerlens",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str = torch.float32,
        lazy_encoder: bool = False,
        lazy_decoder: bool = True,
        feature_input_hook: str | None = None,
        feature_output_hook: str | None = None,
        *,
        select: str | Selection | None = None,
        input_shift: bool | None = None,
        attention: str | Path | TranscoderSet | None = None,
        adapter: str | Path | Transcoders | None = None,
        elsewhere: Literal["neurons"] | None = None,
        revision: str | None = None,
        hf_model: Any = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> ReplacementModel:
        """Load model and transcoders: Hugging Face ids, folders (of peft adapters too), or a GGUF file for the model.

        Lazy weights stay on disk; only rows of active features are read. The hooks are where the transcoders read and write,
        where their files do not say; ``select`` and ``input_shift`` as in `load_dictionary`.

        `torch_dtype` and a `device_map` of one device are understood; other keyword arguments go to transformers.

        Args:
            model_name: Hugging Face id (`org/name@revision`), folder, or GGUF file.
            transcoder_set: "neurons" for the model's own MLP neurons, which need no files (a folder of that name is ./neurons).
                Autoencoders are taken too, for all but traces.
            backend: Decides only what generation does when told nothing.
            device: Where the weights go; None: the best there is (cuda, mps, cpu).
            dtype: Number format of model and transcoders.
            lazy_encoder: Leave encoder rows in the file until they are read.
            lazy_decoder: Leave decoder rows in the file until they are read.
            feature_input_hook: Where the transcoders read, where their files do not say.
            feature_output_hook: Where the transcoders write, where their files do not say.
            select: Which of several dictionaries in one repository, as in `load_dictionary`.
            input_shift: Whether the decoder bias is subtracted from the input, where files do not say.
            attention: Autoencoders of attention outputs, or Lorsa, whose features and errors are nodes too (`load_attention`).
            adapter: Transcoders of what the others leave, such as a fine-tuned model's difference, stacked on them (`Stacked`).
            elsewhere: "neurons" for the model's own in layers that have no transcoders; None: what is there is an error.
            revision: Branch, tag or commit of the model (`org/name@revision` names it too).
            hf_model: A transformers model that is loaded already, used as it is, where it is.
            tokenizer: One that is loaded already, or where it is.
            **kwargs: `torch_dtype` and a `device_map` of one device are understood; others go to transformers.

        Returns:
            The model, ready for `attribute`.

        Raises:
            InputError: For a model or dictionary that is not there, and arguments that do not exist.
            FileFormatError: For files that cannot be read.
            UnsupportedModelError: For an architecture that is unknown or does not behave as the table says.
            CompatibilityError: For a dictionary that does not fit the model.
        """
        if hf_model is not None and device is None:
            device = _device_of(hf_model)
        target, kind, kwargs = place(device, dtype, kwargs)
        where: dict[str, Any] = {"device": present(target), "dtype": kind}
        if isinstance(attention, str | Path):
            attention = load_attention(attention, **where)
        own = {"revision": revision, "hf_model": hf_model, "tokenizer": tokenizer, "attention": attention}
        own["elsewhere"] = elsewhere
        if transcoder_set == NEURONS:
            if adapter is not None:
                raise InputError("neurons leave nothing of an MLP for an adapter to explain; leave adapter out")
            return cls.from_pretrained_and_transcoders(model_name, NEURONS, backend, target, kind, **own, **kwargs)
        transcoders, _ = load_dictionary(
            str(transcoder_set),
            device=present(target),
            dtype=kind,
            lazy_encoder=lazy_encoder,
            lazy_decoder=lazy_decoder,
            select=select,
            input_shift=input_shift,
            feature_input_hook=feature_input_hook,
            feature_output_hook=feature_output_hook,
        )
        if adapter is not None:
            transcoders = stacked(transcoders, adapter, **where)
        return cls.from_pretrained_and_transcoders(model_name, transcoders, backend, target, kind, **own, **kwargs)

    @classmethod
    @typed
    @plain_torch()
    def from_pretrained_and_transcoders(
        cls,
        model_name: str | Path,
        transcoders: Transcoders | Literal["neurons"],
        backend: Backend = "transformerlens",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str = torch.float32,
        *,
        attention: TranscoderSet | None = None,
        elsewhere: Literal["neurons"] | None = None,
        revision: str | None = None,
        hf_model: Any = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> ReplacementModel:
        """Load a model for transcoders that are there already, or its own "neurons"; arguments as `from_pretrained` has.

        Args:
            model_name: As `from_pretrained` has it.
            transcoders: The dictionary, or "neurons".
            backend: Decides only what generation does when told nothing.
            device: Where the weights go; None: the best there is (cuda, mps, cpu).
            dtype: Number format of the model.
            attention: A dictionary of attention outputs.
            elsewhere: "neurons" for the model's own in layers that have no transcoders.
            revision: Branch, tag or commit.
            hf_model: A transformers model that is loaded already.
            tokenizer: One that is loaded already, or where it is.
            **kwargs: Go to transformers.

        Returns:
            The model, ready for `attribute`.

        Raises:
            CircuitTracerError: As `from_pretrained`.
        """
        if hf_model is None:
            target, kind, kwargs = place(device, dtype, kwargs)
            model, tokenizer = load_language_model(
                model_name, present(target), kind, tokenizer=tokenizer, revision=revision, **kwargs
            )
        else:
            if kwargs or revision is not None:
                given = [*kwargs, *(["revision"] if revision is not None else [])]
                raise InputError(f"hf_model is loaded already: {', '.join(given)} would have no effect; leave it out")
            if device is not None and torch.device(device) != _device_of(hf_model):
                raise InputError(
                    f"hf_model is on {_device_of(hf_model)}, and device is {device}: move it, or leave device out"
                )
            require_causal_lm(hf_model)
            model, tokenizer = hf_model, load_tokenizer(model_name if tokenizer is None else tokenizer, hf_model)
        name = str(model_name) if revision is None or "@" in str(model_name) else f"{model_name}@{revision}"
        return cls.from_model(model, transcoders, tokenizer, name, backend, attention, elsewhere)

    @classmethod
    @typed
    @plain_torch()
    def from_config(
        cls,
        config: Any,
        transcoders: Transcoders | Literal["neurons"],
        backend: Backend = "transformerlens",
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> ReplacementModel:
        """A randomly initialised model of a transformers configuration. Keyword arguments: device, dtype (or torch_dtype).

        Without a tokenizer, the one of the model that the configuration names (`_name_or_path`) is loaded, if it names one.

        Args:
            config: A transformers configuration.
            transcoders: The dictionary, or "neurons".
            backend: Decides only what generation does when told nothing.
            tokenizer: None: the one of the model that the configuration names (`_name_or_path`), if it names one.
            **kwargs: Device, dtype (or torch_dtype).

        Returns:
            The model, ready for `attribute`.

        Raises:
            CircuitTracerError: As `from_model`.
        """
        from transformers import PretrainedConfig

        target, kind, kwargs = place(kwargs.pop("device", "cpu"), kwargs.pop("dtype", torch.float32), kwargs)
        if kwargs:
            raise InputError(f"unknown arguments {sorted(kwargs)}; from_config takes device, dtype and tokenizer")
        if not isinstance(config, PretrainedConfig):
            raise InputError(f"config is {shortened(config)}; expected a transformers configuration")
        with library_errors(config.model_type):
            model = text_part(auto_class(config).from_config(config, trust_remote_code=False))
        model = model.to(device=present(target), dtype=kind)
        if tokenizer is None and config._name_or_path:
            tokenizer = load_tokenizer(config._name_or_path, model)
        return cls.from_model(model.eval().requires_grad_(False), transcoders, tokenizer, config.model_type, backend)

    @classmethod
    @typed
    @plain_torch()
    def from_model(
        cls,
        model: Any,
        transcoders: Transcoders | Literal["neurons"],
        tokenizer: Any,
        model_name: str,
        backend: Backend = "transformerlens",
        attention: TranscoderSet | None = None,
        elsewhere: Literal["neurons"] | None = None,
    ) -> ReplacementModel:
        """Wrap a transformers causal LM that is loaded already, with transcoders or its own "neurons".

        Every run leaves it as it was found.

        Of a model that also sees (Gemma 3 4B and larger), the language model is taken; of a quantised one, a de-quantised copy,
        with a warning. A model in training mode is switched to evaluation, with a warning.

        Args:
            model: The transformers model.
            transcoders: The dictionary, or "neurons".
            tokenizer: Its tokenizer.
            model_name: Its name, for files and messages.
            backend: Decides only what generation does when told nothing.
            attention: A dictionary of attention outputs.
            elsewhere: "neurons" for the model's own in layers that have no transcoders.

        Returns:
            The model, ready for `attribute`.

        Raises:
            UnsupportedModelError: If its architecture is unknown or does not behave as the table says, or if its modules are
                more than their weights (live adapters, hooks).
        """
        parts = bind_loaded(model, tokenizer, model_name)
        if isinstance(transcoders, str):
            verify(parts)
            return cls(parts, Neurons(parts), tokenizer, backend, attention)
        transcoders = paired(parts, transcoders)
        verify(parts)
        if elsewhere is not None:
            transcoders = with_neurons(transcoders, parts)
        return cls(parts, transcoders, tokenizer, backend, attention)

    @typed
    def chat_tokens(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **template_arguments: Any
    ) -> Tensor:
        """Token ids (P,) of a conversation, [{"role": ..., "content": ...}, ...], under the tokenizer's chat template.

        Args:
            messages: [{"role": ..., "content": ...}, ...].
            add_generation_prompt: End with what begins the model's answer.
            **template_arguments: What the template knows, such as `enable_thinking=False`.

        Returns:
            (P,) int64 ids.

        Raises:
            InputError: When there is no template, or it refuses the conversation.
        """
        return chat_ids(messages, self.tokenizer, add_generation_prompt, self.prepend_bos, **template_arguments)

    def get_activations(
        self, inputs: tokenization.Prompt, sparse: bool = False, apply_activation_function: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(logits (1, P, V), feature activations (L, P, F), dense or sparse) of a prompt.

        Activations are zero at the positions that circuit-tracer leaves out (0; the chat prefix of a Gemma 3 prompt that begins
        with it). Without the activation function they are pre-activations. Logits are in float32, float64 for such models.

        Args:
            inputs: The prompt: text, or token ids (P,).
            sparse: Return activations as a sparse tensor.
            apply_activation_function: False: pre-activations instead of activations.

        Returns:
            (logits (1, P, V), activations (L, P, F)).
        """
        from circuit_tracer.interventions.features.intervene import get_activations

        return get_activations(self, inputs, sparse, apply_activation_function)

    def feature_intervention(
        self,
        inputs: tokenization.Prompt,
        interventions: Sequence[Intervention],
        constrained_layers: Iterable[int] | None = None,
        freeze_attention: bool = True,
        apply_activation_function: bool = True,
        sparse: bool = False,
        return_activations: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Set features to values; (logits (1, P, V), activations (L, P, F) or None) of the changed pass.

        By default effects go on through all later layers and their real MLPs, with attention patterns as on the clean prompt
        (`freeze_attention`).

        Args:
            inputs: The prompt: text, or token ids (P,).
            interventions: (layer, position, feature, value), value absolute; position may be a slice.
            constrained_layers: MLP outputs of these layers stay as they were, apart from what the features that are set write
                to them directly; features write nowhere else. With all layers, norm scales are frozen too, and changes of
                pre-activations (`apply_activation_function=False`) and of logits before a softcap (`zero_softcap`) are the
                edges of the attribution graph, in units of the source's relative change.
            freeze_attention: Keep attention patterns as on the clean prompt.
            apply_activation_function: False: pre-activations instead of activations.
            sparse: Return activations as a sparse tensor.
            return_activations: False: None in their place.

        Returns:
            (logits (1, P, V), activations (L, P, F) or None).

        Raises:
            InputError: For what does not exist.

        Examples:
            >>> logits, activations = model.feature_intervention(PROMPT, [(0, 7, 78, 0.0)])
            >>> activations.shape
            torch.Size([4, 9, 448])
        """
        from circuit_tracer.interventions.features.intervene import feature_intervention

        return feature_intervention(
            self,
            inputs,
            interventions,
            constrained_layers,
            freeze_attention,
            apply_activation_function,
            sparse,
            return_activations,
        )

    def feature_intervention_generate(
        self,
        inputs: tokenization.Prompt,
        interventions: Sequence[Intervention],
        constrained_layers: Iterable[int] | None = None,
        freeze_attention: bool = True,
        apply_activation_function: bool = True,
        sparse: bool = False,
        return_activations: bool = True,
        **generate_kwargs: Any,
    ) -> tuple[str | Tensor, Tensor, Tensor | None]:
        """Generate with features set: (prompt and continuation, logits (G, V), activations (L, P + G - 1, F) or None).

        The first pass is that of `feature_intervention`. From then on, nothing is frozen, and interventions whose position is
        an open slice (`slice(p, None)`) hold for each new token.

        Args:
            inputs: The prompt: text, or token ids (P,).
            interventions: As `feature_intervention` has them; those whose position is an open slice (`slice(p, None)`) hold for
                each new token.
            constrained_layers: Layers whose MLP outputs stay as they were; None: none.
            freeze_attention: Keep attention patterns as on the clean prompt.
            apply_activation_function: False: pre-activations instead of activations.
            sparse: Return activations as a sparse tensor.
            return_activations: False: None in their place.
            **generate_kwargs: max_new_tokens (10), do_sample (True), temperature, top_k, top_p, freq_penalty, stop_at_eos,
                eos_token_id, return_type ("tokens" for ids (1, P + G)), and others of `GenerationOptions`. Where the model was
                loaded with another `backend` than "transformerlens", what is left out is as transformers' `generate` has it (20
                tokens, chosen as the model's generation configuration says), and special tokens stay in the text, as with
                circuit-tracer's nnsight.

        Returns:
            (prompt and continuation as text or ids, logits (G, V), activations (L, P + G - 1, F) or None).
        """
        from circuit_tracer.interventions.steering.generate import feature_intervention_generate, transformers_defaults

        lens = self.backend == "transformerlens"
        return feature_intervention_generate(
            self,
            inputs,
            interventions,
            constrained_layers,
            freeze_attention,
            apply_activation_function,
            sparse,
            return_activations,
            skip_special_tokens=lens,
            **({} if lens else transformers_defaults(self)) | generate_kwargs,
        )

    def setup_intervention_with_freeze(
        self, inputs: tokenization.Prompt, constrained_layers: Iterable[int] | None = None
    ) -> tuple[Tensor, Freeze]:
        """(activations (L, P, F) of the clean prompt, what to hold still).

        In `with freeze.applied(): ...`, passes of `hf_model` over the same tokens have the clean attention patterns, and in the
        constrained layers the clean MLP outputs.

        Args:
            inputs: The prompt: text, or token ids (P,).
            constrained_layers: Layers whose MLP outputs stay as they were; None: none.

        Returns:
            (activations (L, P, F) of the clean prompt, what to hold).
        """
        from circuit_tracer.interventions.features.intervene import setup_intervention_with_freeze

        return setup_intervention_with_freeze(self, inputs, constrained_layers)

    def zero_softcap(self) -> AbstractContextManager[None]:
        """Inside `with model.zero_softcap(): ...`, logits are those before the final softcap (Gemma 2).

        Returns:
            A context manager; outside of it the model is as it was.
        """
        from circuit_tracer.interventions.features.intervene import zero_softcap

        return zero_softcap(self)

    @property
    def hf_model(self) -> Any:
        """The transformers model."""
        return self.parts.model

    @property
    def feature_input_hook(self) -> str:
        """Where the transcoders read."""
        return self.transcoders.feature_input_hook

    @property
    def feature_output_hook(self) -> str:
        """Where the transcoders write."""
        return self.transcoders.feature_output_hook

    @property
    def skip_transcoder(self) -> bool:
        """Whether the transcoders have a skip connection."""
        return self.transcoders.skip_connection

    @property
    def scan(self) -> str | list[str] | None:
        """Name of the transcoder set."""
        return self.transcoders.scan

    def __repr__(self) -> str:
        cfg = self.cfg
        what = "autoencoders" if self.transcoders.is_autoencoder else self.transcoders.kind
        kind = f"{what} of {self.transcoders.d_transcoder} features a layer"
        if len(self.transcoders.layers) < cfg.n_layers:
            kind += f" in layers {', '.join(map(str, self.transcoders.layers))}"
        if self.attention is not None:
            kind += f", {name_of_attention(self.attention)} of {self.attention.d_transcoder} in {len(self.attention.layers)}"
        return f"ReplacementModel({cfg.model_name}, {cfg.n_layers} layers, {kind}, {self.device}, {cfg.dtype})"


def _device_of(model: Any) -> torch.device:
    require_causal_lm(model)
    device: torch.device = next(model.parameters()).device
    return device

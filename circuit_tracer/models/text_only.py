"""A causal LM around the language model of a model that also sees, where transformers has no class for it alone (Qwen2-VL)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class TextOnly(PreTrainedModel, GenerationMixin):
    """language: gives the final norm's output. head: from that to logits, which are multiplied by a number (Granite)."""

    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, language: Any, head: nn.Module, multiplier: float = 1.0) -> None:
        super().__init__(language.config)
        self.model, self.lm_head, self.multiplier = language, head, multiplier

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """The language model's own class has said so."""
        return True

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        head: nn.Module = self.lm_head
        return head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, P, V)."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return CausalLMOutputWithPast(
            logits=self.lm_head(output.last_hidden_state) * self.multiplier,
            past_key_values=output.past_key_values,
            attentions=output.attentions,
        )

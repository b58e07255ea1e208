"""What Neuronpedia's site sends to a graph server, and what it expects back. Fields that it may add are ignored."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Asked(BaseModel):
    """A request; fields that are not known are left alone."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class ChatMessage(Asked):
    """One turn."""

    role: str
    content: str


class WithPrompt(Asked):
    """A prompt as text or as turns."""

    prompt: str = Field(default="", max_length=200_000)
    messages: list[ChatMessage] | None = None


class GenerateGraph(WithPrompt):
    """`/generate-graph`; `attribution_targets` is ours: targets as on the command line, whose scores of attention
    `enable_qk_tracing` explains.
    """

    model_id: str
    slug_identifier: str
    batch_size: int = Field(default=48, ge=1)
    max_n_logits: int = Field(default=10, ge=1)
    desired_logit_prob: Share = 0.95
    node_threshold: Share = 0.8
    edge_threshold: Share = 0.98
    max_feature_nodes: int | None = Field(default=None, ge=0, description="default: 10,000; of neurons: 2,000")
    signed_url: str | None = None
    user_id: str | None = None
    compress: bool = False
    enable_qk_tracing: bool = False
    qk_topk: int = Field(default=10, ge=1, le=1000)
    attribution_targets: list[str] = Field(default=[], max_length=100)


class ForwardPass(WithPrompt):
    """`/forward-pass`"""

    max_n_logits: int = Field(default=10, ge=1)
    desired_logit_prob: Share = 0.95


class SteerFeature(Asked):
    """One feature: off (`ablate`), or at its activation at `token_active_position` plus `delta`."""

    layer: int
    index: int
    token_active_position: int
    steer_position: int | None = None
    steer_generated_tokens: bool = False
    delta: float | None = Field(default=None, allow_inf_nan=False)
    ablate: bool = False


class Steer(WithPrompt):
    """`/steer`"""

    model_id: str
    features: list[SteerFeature]
    n_tokens: int = Field(default=10, ge=1, le=2000)
    top_k: int = Field(default=5, ge=0, le=1000)
    temperature: float = Field(default=0, ge=0)
    freq_penalty: float = 0
    seed: int | None = None
    freeze_attention: bool = False


class ParseChatPrompt(Asked):
    """`/parse-chat-prompt`"""

    prompt: str = Field(max_length=200_000)


class CheckBusy(BaseModel):
    """Whether a request would be refused now."""

    busy: bool


class SalientLogit(BaseModel):
    """A likely next token."""

    token: str
    token_id: int
    probability: float


class ForwardPassed(BaseModel):
    """The likeliest next tokens; a failure is {"error": ...} with status 200."""

    prompt: str
    input_tokens: list[str]
    salient_logits: list[SalientLogit]
    total_salient_tokens: int
    cumulative_probability: float


class Uploaded(BaseModel):
    """What came of an upload; without `signed_url` the answer is the graph itself."""

    success: str | None = None
    error: str | None = None


class TopLogit(BaseModel):
    """A token and its probability."""

    token: str
    prob: float


class LogitsByToken(BaseModel):
    """A token, and what the model held likely behind it; empty within the prompt."""

    token: str
    top_logits: list[TopLogit]


class Steered(BaseModel):
    """Both generations, prompt included."""

    DEFAULT_GENERATION: str
    STEERED_GENERATION: str
    DEFAULT_LOGITS_BY_TOKEN: list[LogitsByToken]
    STEERED_LOGITS_BY_TOKEN: list[LogitsByToken]


class ParsedChatPrompt(BaseModel):
    """The turns of a rendered prompt, or null for plain text; `/steer` leaves `unsteerable_positions` as they are."""

    messages: list[ChatMessage] | None
    is_chat: bool
    prompt: str
    unsteerable_positions: list[int]

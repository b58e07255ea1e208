"""Architectures of transformers that cannot be traced, each with the part of it that the table has no word for.

A test walks all of transformers' language models: each is in the table, or here.
"""

from __future__ import annotations

_STATE = "it has layers with a state (Mamba, RWKV, RG-LRU, xLSTM), whose map from one position to the next is not read"
_OTHER_LINEAR = "it has linear attention of another kind than the gated delta nets that are read (models/delta_net.py)"
_WHOLE_STREAM = (
    "its norms are of the whole residual stream, behind each sum, so there is no stream that layers only add to"
)
_LOOKS_BACK = "it is the decoder of an encoder–decoder, or reads another model's states, which nothing here stands for"
_SEVERAL = "it carries several residual streams, or mixes and scales the stream between its layers"
_TWO_PARTS = "what its MLP gives comes from two modules side by side"
_CHOSEN_BLOCKS = "an indexer chooses blocks of keys, in a way that only its own attention code applies"
_NORM_INSIDE = "it has a norm, or a product, between the heads and their output projection, or of the embedding"
_WITHIN = "it is not a language model alone, and holds none that the table describes"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba", "mamba2", "nemotron_h",
            "nemotron_h_omni", "nemo_speechlm", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
        ),
        _STATE,
    ),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear", "minimax", "olmo_hybrid"), _OTHER_LINEAR),
    **dict.fromkeys(
        (
            "beam", "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "git",
            "megatron-bert", "openai-gpt", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
            "vision-encoder-decoder", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
        ),
        _WHOLE_STREAM,
    ),
    **dict.fromkeys(
        (
            "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "florence2", "marian", "mbart", "mllama", "moshi",
            "musicgen", "musicgen_melody", "mvp", "pegasus", "pix2struct", "plbart", "pp_formulanet", "prophetnet", "t5gemma2",
            "trocr", "udop", "whisper",
        ),
        _LOOKS_BACK,
    ),
    **dict.fromkeys(
        (
            "deepseek_v4", "doge", "gemma3n", "gemma3n_text", "hrm_text", "hy_v4", "muse_spark", "qwen4_exp", "qwen4_exp_text",
            "zaya",
        ),
        _SEVERAL,
    ),
    **dict.fromkeys(("longcat_flash",), _TWO_PARTS),
    **dict.fromkeys(
        ("dots3_note", "dots3_note_text", "minimax_m3_vl", "minimax_m3_vl_text", "mistral_large4"), _CHOSEN_BLOCKS
    ),
    **dict.fromkeys(
        (
            "axk2", "bitnet", "diffllama", "gpt_neox_japanese", "inkling", "inkling2", "inkling2_text", "inkling_mm_model",
            "inkling_text", "muse_glimmer", "unlimited_ocr", "voxtral_realtime",
        ),
        _NORM_INSIDE,
    ),
    "blt": "it works on bytes, in patches, with three networks",
    "cpmant": "it has norms without names of their own, and positions that depend on segments",
    "ctrl": "its positions are a table that is no module",
    "dbrx": "its values are clipped, so attention is no linear map of them",
    "gemma4_assistant": "it drafts from another model's states, which nothing here stands for",
    "gemma4_unified_assistant": "it drafts from another model's states, which nothing here stands for",
    "jetmoe": "its values and outputs come from experts, so attention is no one linear map",
    "minicpm3": "a number that is not in its configuration multiplies what is added to the stream",
    "modernbert-decoder": "a layer and another norm are behind its final norm, in front of the logits",
    "nanochat": "one norm is used twice, in front of the layers and behind them",
    "reformer": "it hashes what attends to what, and runs its layers both ways",
    "xglm": "its positions are a table that is no module",
    **dict.fromkeys(
        (
            "blip", "chameleon", "deepseek_ocr2", "diffusion_gemma", "evolla", "glm5_next", "idefics", "kosmos-2",
            "kosmos-2.5", "kyutai_speech_to_text", "phi4_multimodal", "pi0", "qwen2_5_omni", "qwen3_omni_moe",
        ),
        _WITHIN,
    ),
}  # fmt: skip

"""Tables of the architectures that are read and refused, inside of a page that is written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from circuit_tracer.models.architecture import Architecture, ValueRows
from circuit_tracer.models.architectures import ARCHITECTURES
from circuit_tracer.models.refused import REFUSED
from docs.generate.text import code, table

# what people call models, for rows of the table that are named otherwise or belong together; others go by their model_type
FAMILIES: dict[str, tuple[str, ...]] = {
    "A.X K1": ("axk1",),
    "Apertus": ("apertus",),
    "Arcee AFM, Trinity": ("arcee", "afmoe"),
    "Aria": ("aria_text",),
    "BioGPT": ("biogpt",),
    "BLOOM": ("bloom",),
    "CodeGen": ("codegen",),
    "Cohere Command": ("cohere", "cohere2", "cohere2_moe", "cohere_compass_text"),
    "CWM": ("cwm",),
    "DeepSeek V2, V3": ("deepseek_v2", "deepseek_v3", "deepseek_v32"),
    "dots.llm1": ("dots1",),
    "Emu3": ("emu3_text_model",),
    "Ernie 4.5": ("ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe_text"),
    "EXAONE 4, EXAONE MoE": ("exaone4", "exaone_moe"),
    "Falcon": ("falcon",),
    "Gemma 1 to 4, VaultGemma": (
        "gemma", "gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text", "vaultgemma",
    ),
    "GLM": (
        "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v_text", "glm4v_moe_text", "glm_moe_dsa", "glm_ocr_text",
    ),
    "GPT-2": ("gpt2",),
    "GPT-J": ("gptj",),
    "GPT-Neo": ("gpt_neo",),
    "GPT-NeoX, Pythia": ("gpt_neox",),
    "gpt-oss": ("gpt_oss",),
    "Granite": (
        "granite", "granite_docling_text", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared",
    ),
    "Helium": ("helium",),
    "HunYuan": ("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl_text", "hy_v3"),
    "HyperCLOVA X": ("hyperclovax",),
    "InternLM 3": ("internlm3",),
    "IQuest-Coder": ("iquestcoder",),
    "Jais 2": ("jais2",),
    "Laguna": ("laguna",),
    "LFM 2 and 3": ("lfm2", "lfm2_moe", "lfm3"),
    "Llama 1 to 4; built alike: SmolLM, SmolLM2, TinyLlama, Yi": ("llama", "llama4_text"),
    "Mellum": ("mellum",),
    "MiMo V2 Flash": ("mimo_v2_flash",),
    "MiniMax M2": ("minimax_m2",),
    "Mistral, Ministral, Mixtral": ("mistral", "ministral", "ministral3", "mistral4", "mixtral"),
    "Molmo 2": ("molmo2_text",),
    "MPT": ("mpt",),
    "Nemotron": ("nemotron",),
    "OLMo 1 to 3, OLMoE, FlexOlmo": ("olmo", "olmo2", "olmo3", "olmoe", "flex_olmo"),
    "OPT": ("opt",),
    "PaddleOCR-VL": ("paddleocr_vl_text",),
    "Persimmon": ("persimmon",),
    "Phi 1 to 4": ("phi", "phi3", "phimoe"),
    "Qwen 1.5 to 3.5": (
        "qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen3", "qwen3_moe",
        "qwen3_next", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_omni_moe_text", "qwen3_5_text", "qwen3_5_moe_text",
    ),
    "Seed-OSS": ("seed_oss",),
    "SmolLM3": ("smollm3",),
    "Solar Open": ("solar_open",),
    "StableLM": ("stablelm",),
    "StarCoder 1 and 2": ("gpt_bigcode", "starcoder2"),
    "Step 3.5": ("step3p5",),
    "Youtu": ("youtu",),
}  # fmt: skip

# what a row has that Llama's has not, by the names of papers; how modules are called is left out
_FEATURES: dict[str, Callable[[Architecture], object]] = {
    "attention and MLP side by side": lambda row: row.parallel or row.parallel_flag,
    "norms behind attention and MLP": lambda row: row.attention_post_norm and row.mlp_post_norm,
    "values out of a latent": lambda row: row.value_rows is ValueRows.LATENT,
    "a gate behind the heads": lambda row: row.gated,
    "gated delta nets": lambda row: row.linear and row.linear.streams != "convolved",
    "gated convolutions": lambda row: row.linear and row.linear.streams == "convolved",
    "learned positions": lambda row: row.position_embedding,
}


def page(path: Path) -> str:
    """The page, with its tables as the code has them."""
    text = path.read_text(encoding="utf-8")
    for name, lines in (("architectures", read()), ("refused", refused())):
        begin, end = f"<!-- {name}: written by python -m docs.generate -->", f"<!-- /{name} -->"
        within = "\n".join([begin, *lines, end])
        text = re.sub(rf"{begin}.*{end}", lambda _, within=within: within, text, flags=re.DOTALL)
    return text


def read() -> list[str]:
    """Every row of the table of architectures, by what its models are called."""
    named = {each for types in FAMILIES.values() for each in types}
    rows = FAMILIES | {each: (each,) for each in ARCHITECTURES if each not in named}
    cells = [
        [name, _codes(types), "; ".join(_said(types))]
        for name, types in sorted(rows.items(), key=lambda row: row[0].lower())
    ]
    return table(["models", "`model_type`", "unlike Llama"], cells)


def refused() -> list[str]:
    """What cannot be traced, by its reason; most common reasons first, as the code has them."""
    reasons: dict[str, list[str]] = {}
    for each, why in REFUSED.items():
        reasons.setdefault(why, []).append(each)
    return table(["because", "`model_type`"], [[why, _codes(sorted(types))] for why, types in reasons.items()])


def _said(types: tuple[str, ...]) -> list[str]:
    """Features and conditions of rows, each with the rows that have it where others have not."""
    having: dict[str, list[str]] = {}
    for each in types:
        row = ARCHITECTURES[each]
        for what in [*(name for name, has in _FEATURES.items() if has(row)), *_condition(row)]:
            having.setdefault(what, []).append(each)
    return [what if len(those) == len(types) else f"{what} ({_codes(those)})" for what, those in having.items()]


def _condition(row: Architecture) -> list[str]:
    """What its configuration must say, as it stands in config.json."""
    said = [code(f"{key}: {json.dumps(value)}") for key, value, _ in row.required]
    return [f"only with {', '.join(said)}"] if said else []


def _codes(types: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(code, types))

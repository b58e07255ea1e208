"""Models and machines that runs are planned for."""

from __future__ import annotations

from circuit_tracer.training.run.cost import ModelSizes
from circuit_tracer.training.run.machine import Machine

# layers, width, MLP width, parameters, those of the embedding: as on the models' cards
PUBLISHED = {
    "gpt2": ModelSizes("gpt2", 12, 768, 3072, 124_439_808, 38_597_376),
    "pythia-70m": ModelSizes("pythia-70m", 6, 512, 2048, 70_426_624, 25_755_648),
    "pythia-160m": ModelSizes("pythia-160m", 12, 768, 3072, 162_322_944, 38_633_472),
    "smollm2-135m": ModelSizes("smollm2-135m", 30, 576, 1536, 134_515_008, 28_311_552),
    "gemma-3-270m": ModelSizes("gemma-3-270m", 18, 640, 2048, 268_098_176, 167_772_160),
    "llama-3.2-1b": ModelSizes("llama-3.2-1b", 16, 2048, 8192, 1_235_814_400, 262_668_288),
    "gemma-2-2b": ModelSizes("gemma-2-2b", 26, 2304, 9216, 2_614_341_888, 589_824_000),
}
TINY = ModelSizes("tiny", 3, 16, 64, 10_000, 1000)
H200 = Machine("cuda", {"float32": 50e12, "bfloat16": 700e12}, 4e12, 140 * 10**9, 10**12, 10**13)
LAPTOP = Machine("cpu", {"float32": 1e11, "bfloat16": 1e11}, 3e10, 12 * 10**9, 12 * 10**9, 10**11)

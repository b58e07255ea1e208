"""Features that were built for other transcoders are not shown as those of these."""

from __future__ import annotations

import torch

from circuit_tracer.demo import FEATURES
from circuit_tracer.demo.show import load_demo
from circuit_tracer.features.belonging import of_other_transcoders
from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.transcoders import CrossLayerTranscoder
from circuit_tracer.transcoders.layer_weights import LayerWeights


def test_a_dictionary_with_other_decoders_is_another_one() -> None:
    features, own = FeatureFolder(FEATURES), load_demo().transcoders
    assert of_other_transcoders(features, own) is None
    draw = torch.Generator().manual_seed(0)
    layers = [
        LayerWeights(
            "by hand",
            own.encoder(layer).whole(),
            torch.randn(own.decoder(layer).shape, generator=draw),
            own.encoder_bias(layer),
            own.decoder_bias(layer),
            own.activation(layer).threshold,
        )
        for layer in range(own.n_layers)
    ]
    hooks = {"feature_input_hook": own.feature_input_hook, "feature_output_hook": own.feature_output_hook}
    other = CrossLayerTranscoder.from_weights(layers, scan=own.scan, **hooks)
    said = of_other_transcoders(features, other)
    assert said is not None
    assert "were built for other transcoders" in said

"""Folders as other libraries publish them: found whole, computing what the libraries compute, and the same as native files."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from circuit_tracer.transcoders import load_transcoder_from_hub, save_transcoders
from tests.support.published import PUBLISHED, D, L, Published


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def load(folder: Path, layout: Published, **options):
    hooks = {} if layout.hooks else {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore" if layout.assumed else "error", message=".*nothing says where.*")
        return load_transcoder_from_hub(folder, **hooks, **layout.options, **options)


@pytest.mark.few
@pytest.mark.parametrize("layout", PUBLISHED.values(), ids=PUBLISHED)
def test_published_layouts_compute_what_their_libraries_compute(layout, tmp_path):
    reference = layout.write(tmp_path / "published")
    loaded, config = load(tmp_path / "published", layout)
    assert (loaded.kind, loaded.n_layers, config["model_kind"]) == (layout.kind, L, layout.kind)
    if layout.hooks:
        assert (loaded.feature_input_hook, loaded.feature_output_hook) == layout.hooks
    x = torch.randn(L, 7, D)
    expected = reference(x)
    torch.testing.assert_close(loaded(x), expected)
    lazy, _ = load(tmp_path / "published", layout, lazy_encoder=True, lazy_decoder=True)
    torch.testing.assert_close(lazy(x), expected)
    save_transcoders(loaded, tmp_path / "native")
    torch.testing.assert_close(load_transcoder_from_hub(tmp_path / "native")[0](x), expected)

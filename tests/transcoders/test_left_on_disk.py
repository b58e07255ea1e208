"""A dictionary stays in its files: loading it, and reading rows of it, leaves what is not in use out of memory (Linux)."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders import load_transcoder_from_hub, save_transcoders
from circuit_tracer.transcoders.weight_rows import MappedRows
from tests.support.dictionaries import random_clt

MB = 2**20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def file_pages() -> int:
    """Bytes of files that are in this process' memory."""
    gc.collect()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow("takes 1.6 s")
@on_linux
def test_rows_are_read_and_their_pages_let_go_of(tmp_path: Path) -> None:
    whole = torch.arange(64 * MB // 4, dtype=torch.float32).view(-1, 4, 256)
    write_tensors(tmp_path / "w.safetensors", {"w": whole})
    mapped = open_tensor_file(tmp_path / "w.safetensors").tensor("w")
    index = torch.arange(0, len(whole), 2)
    before = file_pages()
    assert torch.equal(MappedRows(mapped).rows(index), whole[index])
    assert file_pages() - before < 8 * MB
    assert torch.equal(mapped.index_select(0, index), whole[index])  # the same bytes, by themselves: they stay
    assert file_pages() - before > 24 * MB


@on_linux
def test_loading_reads_little_of_a_dictionary(tmp_path: Path) -> None:
    for name, n_features in (("small", 8), ("large", 8192)):  # the first takes what is imported and made once
        save_transcoders(random_clt(n_features=n_features, d_model=128), tmp_path / name)
        before = file_pages()
        transcoders, _ = load_transcoder_from_hub(tmp_path / name)
    decoders = 4 * sum(transcoders.decoder(layer).shape.numel() for layer in range(transcoders.n_layers))
    assert decoders >= 24 * MB
    assert file_pages() - before < decoders / 8

"""Readers of what training reads and keeps: runs, text, activations that were made elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file

from circuit_tracer.errors import ResourceError
from circuit_tracer.files import read_bytes, read_json
from circuit_tracer.files.digests import sealed
from circuit_tracer.files.tensors import unpack_tensors
from circuit_tracer.text.json_lines import JsonLines
from circuit_tracer.text.parquet import ParquetFiles
from circuit_tracer.text.text_files import TextFiles
from circuit_tracer.text.token_files import TokenFiles
from circuit_tracer.training.config.files import dump, load, preset_names
from circuit_tracer.training.data.given import wire, write_activations
from circuit_tracer.training.data.given.description import check_rows
from circuit_tracer.training.data.given.shards import Shards
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.log import JsonLog
from tests.fuzz.reader import D, F, L, Reader
from tests.support.data_cases import batches, config, stream, texts, write_jsonl
from tests.support.dictionaries import uniform
from tests.support.loop_cases import Run, tensors


@cache
def _run() -> Run:
    return Run("skip", "jumprelu")


def _write_checkpoint(folder: Path) -> None:
    checkpoint.save(_run().state(), folder, {"data": {"position": [1, 2]}}, FeatureRanks())


def _checkpoint(folder: Path) -> Any:
    made = checkpoint.latest(folder)
    assert made is not None
    state = _run().state()
    checkpoint.load_(state, made)
    return made.content, tensors(state)


def _write_log(folder: Path) -> None:
    lines = [{"step": step, "loss": 1.5, "nmse_S": [0.5, None]} for step in range(1, 5)]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(sealed(line))}\n" for line in lines))


def _log(folder: Path) -> Any:
    with JsonLog(folder / "log.jsonl", 3):
        return (folder / "log.jsonl").read_text()


def _write_config(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        dump(load(preset_names()[0], {"run.out": "x", "model.name": "m", "data.path": "y"}))
    )


def _write_cache(folder: Path) -> None:
    write_jsonl(folder / "data.jsonl", texts(6))
    list(batches(stream(config(folder, data__cache=folder / "cache"))))


def _cached(folder: Path) -> Any:
    return [
        tensors_of for batch in batches(stream(config(folder, data__cache=folder / "cache"))) for tensors_of in [batch]
    ]


def _write_position(folder: Path) -> None:
    write_jsonl(folder / "data.jsonl", texts(6))
    source = stream(config(folder))
    next(batches(source))
    (folder / "state.json").write_text(json.dumps(source.state()))


def _position(folder: Path) -> Any:
    source = stream(config(folder))
    source.restore(read_json(folder / "state.json"))
    return next(batches(source), None)  # the end of the data is a place too


# ---- text


def _write_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one two", "three", None] * 5, "id": list(range(15))})
    parquet.write_table(table, folder / "text.parquet", row_group_size=4)


def _write_lines(folder: Path) -> None:
    write_jsonl(folder / "a.jsonl", texts(5))


def _write_text(folder: Path) -> None:
    (folder / "a.txt").write_text("word ünd " * 99, encoding="utf-8")


def _write_array(folder: Path) -> None:
    np.save(folder / "ids.npy", np.arange(60, dtype=np.int32).reshape(6, 10))


def _write_tensor(folder: Path) -> None:
    save_file({"ids": torch.arange(60, dtype=torch.int32).reshape(6, 10)}, folder / "ids.safetensors")


def _write_packed_lines(folder: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(5))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def _some_rows() -> dict[str, torch.Tensor]:
    return {"x": uniform(F, L, D), "y": uniform(F, L, D), "document": torch.arange(F)}


def _write_rows(folder: Path) -> None:
    hooks = {"input_hook": "mlp.hook_in", "output_hook": "mlp.hook_out"}
    write_activations(folder, [_some_rows()], model="tiny", layers=range(L), **hooks, shard_bytes=300)


def _rows(folder: Path) -> Any:
    source = Shards(str(folder))
    found = list(source.parts(0, False))
    for part in found:
        check_rows(part, source.description, str(folder))
    return [source.description.facts(), found]


def _write_message(folder: Path) -> None:
    header = json.dumps({"kind": "rows", "first": 0, "rows": F}).encode()
    payload = wire.packed(_some_rows())
    prefix = wire.PREFIX.pack(wire.MAGIC, len(header), len(payload))
    (folder / "message.bin").write_bytes(prefix + header + payload)


@dataclass
class _Connection:
    recv: Callable[[int], bytes]


def _message(folder: Path) -> Any:
    """As a client gets it from a connection that ends behind it."""
    sent = io.BytesIO(read_bytes(folder / "message.bin", 2**20))
    try:
        header, payload = wire.receive(cast(socket.socket, _Connection(sent.read)), "the server")
    except ConnectionError as error:  # after which the client tries again
        raise ResourceError(str(error)) from error
    return [header, unpack_tensors(payload, "a message")]


def _documents(source: Any) -> Any:
    return [
        document for document, _ in islice(source.read(None), 1000)
    ]  # a file of terabytes is read as it is trained on


DATA_READERS: tuple[Reader, ...] = (
    Reader("checkpoint", _write_checkpoint, _checkpoint),
    Reader("training log", _write_log, _log),
    Reader("training configuration", _write_config, lambda folder: load(folder / "run.yaml")),
    Reader("training cache", _write_cache, _cached, slow=True),
    Reader("position in data", _write_position, _position, slow=True),
    Reader("parquet", _write_parquet, lambda folder: _documents(ParquetFiles(str(folder), "text"))),
    Reader("JSON lines", _write_lines, lambda folder: _documents(JsonLines(str(folder), "text"))),
    Reader("packed JSON lines", _write_packed_lines, lambda folder: _documents(JsonLines(str(folder), "text"))),
    Reader("given activations", _write_rows, _rows),
    Reader("message of activations", _write_message, _message),
    Reader("text", _write_text, lambda folder: _documents(TextFiles(str(folder)))),
    Reader("token arrays", _write_array, lambda folder: _documents(TokenFiles(str(folder), 5))),
    Reader("token tensors", _write_tensor, lambda folder: _documents(TokenFiles(str(folder), 5))),
)

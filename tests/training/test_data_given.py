"""Activations made elsewhere: trained on as if the model had run here, or refused by name. Over a socket: test_data_wire.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from circuit_tracer.errors import (
    CircuitTracerError,
    CompatibilityError,
    FileFormatError,
    InputError,
    NumericalError,
)
from circuit_tracer.files import places
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.ranks import Ranks
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import serve_activations, write_activations
from circuit_tracer.training.data.block import Block
from circuit_tracer.training.data.given import rows
from circuit_tracer.training.data.given.server import ActivationServer
from circuit_tracer.training.data.given.source import open_rows, unseen_model
from circuit_tracer.training.data.source import open_source
from circuit_tracer.training.evaluation.given import HOW_TO_GO_ON
from circuit_tracer.training.evaluation.held_out import sequences_of_configuration
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.requirements import plan_run
from tests.support.data_cases import batches, parts, same, tokenizer
from tests.support.given_cases import HOOKS, SAID, D, given, made, opened, pieces
from tests.support.loop_cases import numbers
from tests.support.tiny import tiny_model
from tests.support.train_cases import Stopped, settings, stop, whole

KINDS = ("shards", "socket", "bucket")


def held_out(settings: TrainingConfig) -> torch.Tensor:
    """All held-out rows of x."""
    source = open_source(
        settings, unseen_model(settings, torch.device("cpu"), Ranks()), None, FeatureRanks(), evaluation=True
    )
    block = Block(source.layout, 5000, source.device)
    return block.rows("x", 0, source.rows.read(block, 0)).clone()


def trained(settings: TrainingConfig) -> torch.Tensor:
    """All rows of x to train on, one batch a row, in order."""
    source = opened(settings).source
    block = Block(source.layout, 5000, source.device)
    return block.rows("x", 0, source.rows.read(block, 0)).clone()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK", 100)
    monkeypatch.setattr(rows, "HELD_OUT_ROWS", 10)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Puts rows where a kind of source has them, and says where that is."""
    servers: list[ActivationServer] = []

    def put(kind: str, whole: dict[str, torch.Tensor], apart: dict[str, torch.Tensor] | None = None) -> str:
        if kind == "socket":
            again = {"held_out": None if apart is None else partial(pieces, apart, 30)}
            server = serve_activations(
                partial(pieces, whole, 30), "tcp://127.0.0.1:0", **SAID, **again, width=whole["x"].shape[2]
            )
            servers.append(server)
            return server.address
        folder = tmp_path / "acts"
        write_activations(
            folder,
            pieces(whole, 30),
            **SAID,
            held_out=None if apart is None else pieces(apart, 30),
            shard_bytes=5000,
        )
        if kind == "shards":
            return str(folder)
        system, root = places.open_system(f"memory://{tmp_path.name}")
        for path in folder.iterdir():
            system.pipe(f"{root}/acts/{path.name}", path.read_bytes())
        return f"memory://{tmp_path.name}/acts"

    yield put
    for server in servers:
        server.close()


# ---- training on them


def of_our_own(text: TrainingConfig, evaluation: bool) -> dict[str, torch.Tensor]:
    """All rows that the model makes of a text, in order."""
    source = open_source(text, parts(), tokenizer(), FeatureRanks(), evaluation)
    block = Block(source.layout, 5000, source.device)
    end = source.rows.read(block, 0)
    return {name: block.rows(name, 0, end).clone() for name in ("x", "y")}


@pytest.mark.slow("takes 2 s")
def test_a_run_on_written_rows_is_the_run_that_made_them(tmp_path: Path, at: Callable[..., str]) -> None:
    """Bitwise the same losses and weights, without the model; also stopped and resumed, and over a socket."""
    expected = [numbers(report) for report in whole(tmp_path, "alone", {})]
    training, apart = (of_our_own(settings(tmp_path, "alone"), evaluation) for evaluation in (False, True))
    changes: dict[str, Any] = {
        "data__kind": "activations",
        "data__context_length": 256,
        "data__sequences_per_pass": 16,
        "model__name": "nobody/tiny",
    }
    here = {**changes, "data__path": at("socket", training, apart)}
    assert [numbers(report) for report in whole(tmp_path, "socket", here)] == expected
    here = {**changes, "data__path": at("shards", training, apart)}
    with pytest.raises(Stopped):
        whole(tmp_path, "shards", here, last=5, end=stop)
    assert [numbers(report) for report in whole(tmp_path, "shards", here, resume=True)] == expected[3:]
    for name in ("W_enc_0", "W_dec_1"):
        files = [
            (tmp_path / run / "transcoder" / f"{name}.safetensors").read_bytes()
            for run in ("alone", "shards", "socket")
        ]
        assert files[0] == files[1] == files[2]
    evaluation = json.loads((tmp_path / "shards" / "transcoder" / "evaluation.json").read_text())
    card = (tmp_path / "shards" / "transcoder" / "README.md").read_text()
    assert evaluation["conditions"]["data"]["activations_given"] == 64
    assert "on 64 held-out tokens (given as activations). NMSE" in card
    assert evaluation["not_measured"] == [HOW_TO_GO_ON]
    assert HOW_TO_GO_ON in card


def test_autoencoders_of_written_rows_are_trained_started_from_and_measured(tmp_path: Path) -> None:
    """Of two of three layers, without the model; the second run begins with the files of the first."""
    hooks = dict.fromkeys(HOOKS, "hook_resid_post")
    write_activations(tmp_path / "acts", pieces({"x": made(300)["x"]}, 50), **{**SAID, **hooks})
    here = {"data__kind": "activations", "data__path": str(tmp_path / "acts"), "model__name": "nobody/tiny"} | {
        "data__context_length": 256, "data__sequences_per_pass": 16, "dictionary__kind": "sae", "dictionary__layers": [0, 2],
        "evaluation__random_baseline": True, "data__held_out": 0.1,
    }  # fmt: skip
    first = whole(tmp_path, "first", here)
    files = tmp_path / "first" / "transcoder"
    second = whole(tmp_path, "second", here | {"run__start_from": str(files)})
    assert second[0].loss < first[0].loss
    evaluation = json.loads((files / "evaluation.json").read_text())
    assert evaluation["conditions"]["layers"] == [0, 2]
    assert set(evaluation["results"]) == {"dictionary", "random"}
    assert evaluation["conditions"]["export"]["loss"] < 0.05
    card = (tmp_path / "second" / "transcoder" / "README.md").read_text()
    assert card.count("circuit-tracer evaluate -m nobody/tiny") == 1
    assert "Started from the dictionary transcoder, fingerprint" in card
    assert str(tmp_path) not in card


@pytest.mark.few
@pytest.mark.parametrize(("kind", "split"), list(product(KINDS, ("by document", "by rows", "apart"))))
def test_a_stream_of_given_rows_resumes_at_every_step(
    kind: str, split: str, at: Callable[..., str], tmp_path: Path
) -> None:
    whole = made(**({"document": torch.arange(700) // 9} if split == "by document" else {}))
    path = at(kind, whole, made(40, seed=1) if split == "apart" else None)
    settings = given(path, tmp_path, data__epochs=2, run__batch=60, data__buffer_tokens=240)
    stream, expected, states = opened(settings), [], []
    while (batch := stream.next()) is not None:
        expected.append(batch)
        states.append(json.loads(json.dumps(stream.state())))
    assert len(expected) > 15
    for step in (1, 4, 5, len(expected) - 1):
        resumed = opened(settings)
        resumed.restore(states[step - 1])
        assert all(same(*pair) for pair in zip(batches(resumed), expected[step:], strict=True))


@pytest.mark.parametrize("split", ["by document", "by rows", "apart"])
def test_no_row_is_trained_on_and_held_out(split: str, at: Callable[..., str], tmp_path: Path) -> None:
    document = torch.arange(700) // 9
    whole = made(**({"document": document} if split == "by document" else {}))
    apart = made(40, seed=1) if split == "apart" else None
    settings = given(at("shards", whole, apart), tmp_path)
    kept, held = trained(settings), held_out(settings)
    if apart is not None:
        assert torch.equal(kept, whole["x"])
        assert torch.equal(held, apart["x"])
        return
    number = document if split == "by document" else torch.arange(700) // 10
    chosen = number % 10 == 0  # one in ten, the first among them
    assert torch.equal(kept, whole["x"][~chosen])
    assert torch.equal(held, whole["x"][chosen])


def test_long_rows_are_left_out_and_layers_chosen(at: Callable[..., str], tmp_path: Path) -> None:
    whole = made(300)
    whole["x"][123, 1] *= 1e4
    path = at("shards", whole, made(40))
    plt = {"dictionary__kind": "plt", "data__max_norm_ratio": 50.0}
    assert torch.equal(trained(given(path, tmp_path, **plt)), torch.cat([whole["x"][:123], whole["x"][124:]]))
    assert torch.equal(trained(given(path, tmp_path, **plt, dictionary__layers=[0, 2])), whole["x"][:, [0, 2]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_format_is_read(dtype: torch.dtype, at: Callable[..., str], tmp_path: Path) -> None:
    whole = {name: tensor.to(dtype) for name, tensor in made(300).items()}
    assert torch.equal(trained(given(at("shards", whole, made(20)), tmp_path)), whole["x"].float())


def test_a_foreign_writer_needs_the_libraries_of_the_format_alone(tmp_path: Path) -> None:
    """As docs/how-to/activations.md says: files in the order of their names, and a manifest without a list of them."""
    folder, whole = tmp_path / "foreign", made(250)
    folder.mkdir()
    for number, part in enumerate(pieces(whole, 60)):
        save_file({name: tensor.contiguous() for name, tensor in part.items()}, folder / f"{number:04d}.safetensors")
    said = {"format": "circuit-tracer activations", "version": 1, **SAID, "width": D, "made_with": "another engine"}
    (folder / "activations.json").write_text(json.dumps(said))
    settings = given(folder, tmp_path)
    together = torch.cat([trained(settings), held_out(settings)])
    assert sorted(together.flatten(1).tolist()) == sorted(whole["x"].flatten(1).tolist())
    plan = plan_run(settings, torch.device("cpu"))
    assert plan.work.sizes.d_model == D
    assert plan.device_needs["language model"] == 0


def test_the_example_of_the_documentation_writes_what_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of every text but its first token, as the model's own pass has them."""
    tiny_model("llama", torch.float32).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in ("some words", "and others, too", "at last")))
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "activations.md").read_text()
    example = next(block for block in page.split("```python")[1:] if "save_file" in block).split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(example.replace("HuggingFaceTB/SmolLM2-135M", "model"), {})
    (ids,) = tokenizer()("and others, too\n", return_tensors="pt").input_ids
    x, y = ModelPass(parts(), Points((0, 1, 2), "hook_resid_mid", "hook_mlp_out"), len(ids)).run(ids[None])
    folder = tmp_path / "acts"
    assert [len(part["x"]) for part in open_rows(str(folder), Ranks()).parts(0, False)] == [10, 15, 7]
    second = list(open_rows(str(folder), Ranks()).parts(0, False))[1]
    for name, expected in (("x", x), ("y", y)):
        torch.testing.assert_close(second[name], torch.stack(expected, 1)[1:])
    assert len(trained(given(folder, tmp_path, model__name="model"))) == 15 + 7


def test_an_autoencoder_needs_one_tensor(tmp_path: Path) -> None:
    whole = {"x": made(300)["x"]}
    hooks = dict.fromkeys(HOOKS, "hook_resid_post")
    write_activations(tmp_path / "acts", pieces(whole, 50), **{**SAID, **hooks}, held_out=pieces(whole, 50))
    batch = opened(given(tmp_path / "acts", tmp_path, dictionary__kind="sae")).next()
    assert batch is not None
    assert batch.y_BSD is batch.x_BSD


def test_a_cache_keeps_rows_that_were_sent(at: Callable[..., str], tmp_path: Path) -> None:
    settings = given(at("socket", made(), made(40)), tmp_path, data__cache=tmp_path / "cache")
    expected = list(batches(opened(settings)))
    assert all(same(*pair) for pair in zip(batches(opened(settings)), expected, strict=True))
    assert (tmp_path / "cache" / "rows-000000.safetensors").is_file()


# ---- what does not fit


def folder_of(tmp_path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    folder = tmp_path / "acts"
    folder.mkdir()
    save_file(tensors or made(300), folder / "a.safetensors")
    said = {"format": "circuit-tracer activations", "version": 1, **SAID, "width": D, **changes}
    (folder / "activations.json").write_text(json.dumps(said))
    return folder


nan = made(300)
nan["y"][250, 2, 1] = float("nan")


@pytest.mark.parametrize(
    ("changes", "tensors", "error", "message"),
    [
        ({"version": 2}, None, FileFormatError, r"activations\.json is not as expected:\s+version"),
        ({"layers": "all"}, None, FileFormatError, r"layers: .* valid list, found 'all'"),
        ({"layers": [0, 2, 1]}, None, FileFormatError, r"layers are \[0, 2, 1\]; .*ascending"),
        ({"n_layers": 2}, None, FileFormatError, r"layer 2 is named, of a model that has 2"),
        ({"width": 5}, None, FileFormatError, r"'x' has the shape \(300, 3, 4\); expected \(rows, 3 layers, width 5\)"),
        ({"layers": [0, 1]}, None, FileFormatError, r"expected \(rows, 2 layers, width 4\)"),
        ({"input_hook": "mlp.hook_in"}, None, CompatibilityError, r"input_hook 'mlp\.hook_in', but dictionary\.input_hook is"),
        ({"n_layers": 9}, None, CompatibilityError, r"without layer 3: a clt covers all layers"),
        ({"shards": [{"file": "b.safetensors"}]}, None, FileFormatError, r"lists 'b\.safetensors', which is not beside it"),
        ({"shards": [{"file": "a.safetensors", "rows": 4}]}, None, FileFormatError, r"has 300 rows, but .* says 4"),
        ({}, {"x": made(300)["x"]}, FileFormatError, r"has no tensor 'y' \(found 'x'\)"),
        ({}, {name: one.int() for name, one in made(300).items()}, FileFormatError, r"is torch\.int32; expected a float"),
        ({}, {**made(300), "y": made(299)["y"]}, FileFormatError, r"its tensors have 299, 300 rows"),
        ({}, made(300, document=torch.zeros(300)), FileFormatError, r"'document' is torch\.float32 .*whole numbers \(rows,\)"),
        ({}, nan, NumericalError, r"at hook_mlp_out of layer 2 are not finite in row 250"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_shards_is_named(
    changes: dict[str, Any],
    tensors: dict[str, torch.Tensor] | None,
    error: type[CircuitTracerError],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        trained(given(folder_of(tmp_path, tensors, **changes), tmp_path))


def test_a_configuration_without_text_cannot_name_one(tmp_path: Path) -> None:
    settings = given("acts", tmp_path)
    with pytest.raises(InputError, match=r"reads activations .*, not text: name a file of text instead"):
        sequences_of_configuration(settings, settings.evaluation, tokenizer())


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no activations\.json, which says"):
        open_rows(str(tmp_path), Ranks())
    some = {"dictionary__kind": "plt"}
    folder = folder_of(tmp_path, layers=[1, 4, 7])
    with pytest.raises(CompatibilityError, match=r"without layer 0: set dictionary\.layers to \[1, 4, 7\], or to some"):
        opened(given(folder, tmp_path, **some))
    with pytest.warns(UserWarning, match="were made by 'tiny', while model.name is 'other/one'"):
        opened(given(folder, tmp_path, **some, dictionary__layers=[1, 7], model__name="other/one"))
    (folder / "a.safetensors").write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"a\.safetensors is not a safetensors file"):
        opened(given(folder, tmp_path))


def test_folders_of_a_pattern_are_read_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_activations(tmp_path / name, pieces(made(150, seed=ord(name)), 50), **SAID)
    settings = given(tmp_path / "*", tmp_path)
    assert len(trained(settings)) + len(held_out(settings)) == 300
    write_activations(tmp_path / "c", pieces(made(20), 10), **{**SAID, "model": "another"})
    with pytest.raises(CompatibilityError, match="are not of the same activations: model differ"):
        opened(settings)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    write = partial(write_activations, tmp_path / "acts", **SAID)
    for bad, message in (
        ([], "there is no row to write"),
        ([{"y": made(2)["y"]}], r"no tensor 'x' of shape"),
        ([made(3), {**made(3), "document": torch.arange(3)}], "a batch has x, y, document, those before it x, y"),
        ([{"x": made(3)["x"], "y": made(3)["y"][:, :2]}], r"'y' has the shape \(3, 2, 4\)"),
    ):
        with pytest.raises(CircuitTracerError, match=message):
            write(bad)
    assert not (tmp_path / "acts" / "activations.json").exists()
    write([made(3)])
    with pytest.raises(InputError, match="holds activations already"):
        write([made(3)])

"""Publishing a dictionary: to a folder, to a hub on this machine, and everything that can be wrong before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from circuit_tracer.errors import FileFormatError, InputError, ResourceError
from circuit_tracer.training.export.push import Publication, check_repo_id, collect, copy_to, push
from circuit_tracer.transcoders import load_transcoder_from_hub, save_transcoders
from tests.support.fake_hub import READ_ONLY, TOKEN, FakeHub
from tests.support.json_lines import require_lines
from tests.support.tiny import tiny_transcoder


def dictionary(folder: Path, kind: str = "clt", n_layers: int = 3) -> Path:
    save_transcoders(tiny_transcoder(kind, torch.float32, n_layers=n_layers), folder, "org/model")
    (folder / "README.md").write_text("---\nlibrary_name: circuit-tracer\n---\n# A card\n", encoding="utf-8")
    (folder / "evaluation.json").write_text("{}", encoding="utf-8")
    (folder / "nmse.png").write_bytes(b"picture")
    (folder / "notes.txt").write_text("private", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return dictionary(tmp_path / "dictionary")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The tests run with HF_HUB_OFFLINE; this hub is on the same machine. Xet has no such stand-in: LFS is used."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    with FakeHub().running() as server:
        yield server


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_what_is_pushed_can_be_loaded_again(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    publication = collect(dictionary(tmp_path / "dictionary", kind))
    address = push(publication, "someone/clt", endpoint=hub.address)
    assert address == f"{hub.address}/someone/clt/commit/{1:040x}"
    assert hub.commits == 1
    assert hub.private == {"someone/clt": False}
    files = hub.repositories["someone/clt"]
    assert "notes.txt" not in files
    assert {"config.yaml", "README.md", "evaluation.json", "nmse.png"} <= set(files)
    back = tmp_path / "back"
    back.mkdir()
    for name, content in files.items():
        (back / name).write_bytes(content)
    loaded, config = load_transcoder_from_hub(back)
    x = torch.randn(3, 5, 16)
    expected, _ = load_transcoder_from_hub(tmp_path / "dictionary")
    assert torch.equal(loaded(x), expected(x))
    assert config["model_name"] == "org/model"


def test_weights_of_an_earlier_dictionary_are_deleted_in_the_same_commit(hub: FakeHub, tmp_path: Path) -> None:
    push(collect(dictionary(tmp_path / "four", n_layers=4)), "someone/clt", endpoint=hub.address)
    hub.repositories["someone/clt"]["examples/notes.md"] = b"stays"
    push(collect(dictionary(tmp_path / "three")), "someone/clt", endpoint=hub.address)
    files = hub.repositories["someone/clt"]
    assert hub.commits == 2
    assert "W_enc_3.safetensors" not in files
    assert "W_enc_2.safetensors" in files
    assert files["examples/notes.md"] == b"stays"


def test_private_is_said_when_the_repository_is_made(hub: FakeHub, folder: Path) -> None:
    push(collect(folder), "someone/secret", private=True, endpoint=hub.address)
    assert hub.private == {"someone/secret": True}


def test_tokens_that_are_missing_unknown_or_read_only(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publication = collect(folder)
    with pytest.raises(InputError, match=r"may not write to someone/clt.*read access only"):
        push(publication, "someone/clt", token=READ_ONLY, endpoint=hub.address)
    with pytest.raises(InputError, match="does not know the token"):
        push(publication, "someone/clt", token="hf_wrong", endpoint=hub.address)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match=r"needs a token.*hf auth login.*-o FOLDER"):
        push(publication, "someone/clt", endpoint=hub.address)
    assert not hub.repositories


def test_a_hub_that_fails_has_committed_nothing(hub: FakeHub, folder: Path) -> None:
    hub.fail_at = "/commit/"
    with pytest.raises(ResourceError, match=r"refused someone/clt.*disk of the hub is full.*Nothing was committed"):
        push(collect(folder), "someone/clt", endpoint=hub.address)
    assert list(hub.repositories["someone/clt"]) == [".gitattributes"]


def test_no_network_and_offline_mode(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ResourceError, match=r"cannot be reached.*run the command again"):
        push(collect(folder), "someone/clt", endpoint=hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE is set"):
        push(collect(folder), "someone/clt", endpoint=hub.address)


@pytest.mark.parametrize("name", ["clt", "", "a/b/c", "so me/one", "../up", "a--b/c", "-/-"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="no name of a repository"):
        check_repo_id(name)


def test_a_run_folder_stands_for_its_dictionary(tmp_path: Path) -> None:
    dictionary(tmp_path / "run" / "transcoder")
    (tmp_path / "run" / "config.yaml").write_text("the run's")
    publication = collect(tmp_path / "run")
    assert publication.files["config.yaml"] == tmp_path / "run" / "transcoder" / "config.yaml"
    assert publication.left_out == ["notes.txt"]


def test_autoencoders_keep_their_folders(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "README.md").write_text("# Card")
    for layer in (0, 4):
        (tmp_path / f"layer_{layer}").mkdir()
        (tmp_path / f"layer_{layer}" / "cfg.json").write_text('{"architecture": "jumprelu"}')
        save_file({"W_enc": torch.zeros(4, 8)}, tmp_path / f"layer_{layer}" / "sae_weights.safetensors")
    assert "layer_4/sae_weights.safetensors" in collect(tmp_path).files
    (tmp_path / "layer_4" / "cfg.json").unlink()
    with pytest.raises(FileFormatError, match=r"lacks layer_4/cfg.json"):
        collect(tmp_path)


def test_incomplete_folders_are_refused_before_anything_is_sent(folder: Path, tmp_path: Path) -> None:
    def without(name: str) -> Path:
        copy = tmp_path / f"without-{name}"
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        return copy

    with pytest.raises(InputError, match=r"no README.md.*circuit-tracer evaluate"):
        collect(without("README.md"))
    with pytest.raises(InputError, match=r"no config.yaml"):
        collect(without("config.yaml"))
    with pytest.raises(FileFormatError, match=r"W_dec_1.safetensors is missing"):
        collect(without("W_dec_1.safetensors"))
    with pytest.raises(InputError, match="no such folder"):
        collect(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no weights.*circuit-tracer convert"):
        collect(tmp_path / "empty")
    damaged = folder / "W_enc_1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(FileFormatError, match="W_enc_1"):
        collect(folder)


def test_a_model_that_only_exists_here_is_warned_about(folder: Path) -> None:
    config = folder / "config.yaml"
    lines = config.read_text().replace("org/model", str(folder / "model.gguf")).splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith("digest")))
    with pytest.warns(UserWarning, match="others cannot load"):
        collect(folder)


def test_copies_are_complete_and_go_into_empty_folders_only(folder: Path, tmp_path: Path) -> None:
    target = copy_to(collect(folder), tmp_path / "copy")
    names = sorted(path.name for path in target.iterdir())
    assert names == sorted(path.name for path in folder.iterdir() if path.name != "notes.txt")
    assert (target / "W_dec_0.safetensors").read_bytes() == (folder / "W_dec_0.safetensors").read_bytes()
    with pytest.raises(InputError, match="is not empty"):
        copy_to(collect(folder), target)


def test_sizes_add_up(folder: Path) -> None:
    publication = collect(folder)
    assert publication.bytes == sum(path.stat().st_size for path in publication.files.values())
    assert Publication({}).bytes == 0


class TestCommand:
    """`circuit-tracer push`."""

    @staticmethod
    def run(*arguments: object) -> tuple[int, str]:
        from circuit_tracer.cli.main import app

        words = ["push", *map(str, arguments)]
        result = CliRunner().invoke(app, words)
        if "--json" in words:
            require_lines(words, result.exit_code, result.stdout)
        return result.exit_code, result.output

    def test_dry_run_lists_files_and_needs_nothing(self, folder: Path) -> None:
        code, said = self.run(folder, "someone/clt", "--dry-run")
        assert code == 0
        assert "W_dec_0.safetensors" in said
        assert "in 10 files" in said
        assert "left out: notes.txt" in said
        assert json.loads(self.run(folder, "--dry-run", "--json")[1])["left_out"] == ["notes.txt"]

    def test_a_folder_instead_of_the_hub(self, folder: Path, tmp_path: Path) -> None:
        code, said = self.run(folder, "-o", tmp_path / "copy")
        assert (code, "wrote 10 files" in said) == (0, True)
        assert load_transcoder_from_hub(tmp_path / "copy")[0].n_layers == 3

    def test_upload(self, hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        code, said = self.run(folder, "someone/clt", "--private")
        assert code == 0, said
        assert "pushed 10 files" in said
        assert hub.private == {"someone/clt": True}

    def test_contradictions(self, folder: Path, tmp_path: Path) -> None:
        for arguments in (
            [folder],
            [folder, "someone/clt", "-o", tmp_path / "copy"],
            [folder, "-o", tmp_path / "copy", "--private"],
            [folder, "no-owner"],
            [tmp_path / "nowhere", "someone/clt"],
        ):
            code, said = self.run(*arguments)
            assert (code, said.startswith("error: ")) == (2, True), said

"""Which files make up a GGUF model, and where what is made from it is kept."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_checkpoints import Row, finish, make

from serving.errors import StartupError
from serving.models import converted
from serving.models.artefacts import check_directory, weight_files
from serving.models.gguf.files import gguf_files, is_prepared, model_names
from serving.models.gguf.tensors import BlockTensor, open_gguf
from serving.models.hub_files import RemoteFile, wanted_files

SPLIT = [f"m-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]


def with_files(directory: Path, *names: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_bytes(b"")
    return directory


def names(directory: Path) -> list[str]:
    return [path.name for path in gguf_files(directory)]


def test_the_only_file_of_a_directory_is_the_model(tmp_path: Path) -> None:
    with_files(tmp_path, "m-Q4_K_M.gguf", "mmproj-m-f16.gguf", "README.md")
    assert names(tmp_path) == ["m-Q4_K_M.gguf"]


def test_a_split_model_is_one(tmp_path: Path) -> None:
    with_files(tmp_path, *reversed(SPLIT))
    assert names(tmp_path) == SPLIT
    assert names(tmp_path / SPLIT[0]) == names(tmp_path / SPLIT[1]) == SPLIT


def test_a_part_of_a_split_model_is_missing(tmp_path: Path) -> None:
    with_files(tmp_path, SPLIT[1])
    for path in (tmp_path, tmp_path / SPLIT[1]):
        with pytest.raises(StartupError, match=f"lacks 1 of the 00002 files .* {SPLIT[0]}"):
            gguf_files(path)


def test_two_models_have_to_be_told_apart(tmp_path: Path) -> None:
    with_files(tmp_path, "m-Q4_0.gguf", *SPLIT)
    with pytest.raises(StartupError) as caught:
        gguf_files(tmp_path)
    assert f"2 GGUF models (there are: m-Q4_0.gguf, {SPLIT[0]})" in caught.value.cause
    assert "the path of its file" in caught.value.remedy
    assert names(tmp_path / "m-Q4_0.gguf") == ["m-Q4_0.gguf"]


@pytest.mark.parametrize("other", ["model.safetensors", "pytorch_model.bin"])
def test_other_weights_come_first(tmp_path: Path, other: str) -> None:
    with_files(tmp_path, "m.gguf", other)
    assert names(tmp_path) == []
    assert names(tmp_path / "m.gguf") == ["m.gguf"]


def test_a_part_of_a_name_is_a_whole_word() -> None:
    there = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m.q8_0.gguf", "Q6_K/m-Q6_K.gguf"]
    assert model_names(there, "q4_k_m", "org/m") == ["m-Q4_K_M.gguf"]
    assert model_names(there, "Q8_0", "org/m") == ["m.q8_0.gguf"]
    assert model_names(there, "Q6_K", "org/m") == ["Q6_K/m-Q6_K.gguf"]
    with pytest.raises(StartupError, match=r"org/m holds 0 GGUF models named Q4_K \(there are: "):
        model_names(there, "Q4_K", "org/m")


def test_a_repository_with_one_model_needs_no_choice() -> None:
    listing = [RemoteFile("m.gguf"), RemoteFile("config.json"), RemoteFile("README.md")]
    wanted = wanted_files(listing, "org/m", ".safetensors", convert=True, code=False)
    assert wanted == [RemoteFile("m.gguf")]


def test_a_choice_comes_before_safetensors() -> None:
    listing = [RemoteFile(name) for name in ("config.json", "model.safetensors", *SPLIT)]
    arguments = (listing, "org/m", ".safetensors", True, False)
    assert [file.name for file in wanted_files(*arguments)] == ["config.json", "model.safetensors"]
    assert [file.name for file in wanted_files(*arguments, "Q8_0")] == SPLIT


# --- what is made from a file --------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(Row("llama", "llama"), tmp_path_factory.mktemp("made")).file


def test_a_file_is_prepared_once_in_a_directory_of_its_own(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(file.parent.iterdir())
    directory = converted.servable(file.parent, str(tmp_path))
    assert directory.parent == tmp_path / "text-generation-serving"
    check_directory(directory)
    assert [path.resolve() for path in weight_files(directory)] == [file]
    assert (directory / "tokenizer.json").resolve() == file.parent / "tokenizer.json"
    assert sorted(file.parent.iterdir()) == before
    monkeypatch.setattr(converted, "CONVERT", ("false",))
    assert converted.servable(file, str(tmp_path)) == directory
    assert converted.servable(directory, str(tmp_path)) == directory


def test_a_file_that_changed_is_prepared_again(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "m.gguf"
    link.write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((file.parent / "tokenizer.json").read_bytes())
    first = converted.servable(link, str(tmp_path / "cache"))
    link.write_bytes(file.read_bytes() + bytes(32))
    assert converted.servable(link, str(tmp_path / "cache")) != first


def test_the_childs_refusal_is_ours(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(StartupError) as caught:
        converted.servable(cut, str(tmp_path / "cache"))
    assert "cut.gguf is not a GGUF file that can be read" in caught.value.cause
    assert "download the file again" in caught.value.remedy
    assert not any(is_prepared(path) for path in (tmp_path / "cache").rglob("*"))


def test_a_file_that_is_cut_later_is_noticed_before_the_engine_starts(
    file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "m.gguf"
    copy.write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((file.parent / "tokenizer.json").read_bytes())
    directory = converted.servable(copy, str(tmp_path / "cache"))
    copy.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(StartupError, match="ends at byte"):
        check_directory(directory)


def test_a_split_model_is_read_as_one(file: Path, tmp_path: Path) -> None:
    """The first part has the metadata, the second some of the tensors."""
    reader = gguf.GGUFReader(file)
    for number, path in enumerate(SPLIT):
        writer = gguf.GGUFWriter(tmp_path / path, "llama")
        if number == 0:
            for field in list(reader.fields.values())[4:]:
                writer.add_key_value(field.name, field.contents(), field.types[0])
        for tensor in reader.tensors[number::2]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        finish(writer)
    (tmp_path / "tokenizer.json").write_bytes((file.parent / "tokenizer.json").read_bytes())
    whole = converted.servable(file, str(tmp_path / "cache"))
    split = converted.servable(tmp_path, str(tmp_path / "cache"))
    assert len(weight_files(split)) == 2
    configs = [json.loads((one / "config.json").read_text()) for one in (whole, split)]
    assert configs[0] == configs[1]
    tensors = [open_gguf(weight_files(one)).tensors for one in (whole, split)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor.read(), tensors[1][name].read())


def test_what_a_quantized_matrix_takes_is_told_before_it_is_read(tmp_path: Path) -> None:
    """Roughly: threads and the KV pool are chosen by it."""
    made = make(Row("llama", "llama"), tmp_path, Type.Q4_0)
    stored = open_gguf([made.file]).tensors["blk.0.attn_q.weight"]
    assert isinstance(stored, BlockTensor)
    weight = stored.block_type.decode("q", stored.blocks((0, 64)))
    assert weight.num_bytes <= stored.num_bytes < 1.5 * weight.num_bytes

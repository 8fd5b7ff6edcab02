"""Unusable and partial checkpoints are refused before any row is read; usable ones run."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenvl_kit import CheckpointError, Config
from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.loading import load_processor
from qwenvl_kit.cli import main
from qwenvl_kit.demo import model_dir
from qwenvl_kit.errors import RowError
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference import preflight
from qwenvl_kit.inference.processor import InputProcessor
from qwenvl_kit.types import LoadedImage, Request

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
RUN = {
    "dtype": "float32",
    "use_flash_attention_2": False,
    "progress": False,
    "threads": 1,
    "max_caption_length": 4,
    "prompt": "Describe this picture.",
}
PICTURE = np.full((112, 112, 3), 200, np.uint8)
Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir(), tmp_path / "model"))


def refusal(folder: Path, **options: Any) -> str:
    """Return the error of `make_spec`, which reads neither rows nor weights."""
    with pytest.raises(CheckpointError) as caught:
        make_spec(Config(model_name=str(folder), **options))
    assert str(folder) in str(caught.value)
    return str(caught.value)


def answer(folder: Path) -> str:
    return str(pd.Series([PICTURE]).vl.run(model_name=str(folder), **RUN)["text"].iloc[0])


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rename(folder: Path, new_name: Callable[[str], str | None]) -> None:
    """Write the weights under other names; None leaves a tensor out."""
    weights = load_file(folder / WEIGHTS)
    kept = {new: tensor for name, tensor in weights.items() if (new := new_name(name)) is not None}
    save_file(kept, folder / WEIGHTS, {"format": "pt"})


def untie(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = False
    edit(folder / "config.json", tie_word_embeddings=False, text_config=config["text_config"])


def forget_to_tie(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))


MISSING: dict[str, Change] = {
    "a layer": lambda folder: rename(folder, lambda name: None if ".layers.1." in name else name),
    "the picture tower": lambda folder: rename(folder, lambda name: None if "visual" in name else name),
    "one norm": lambda folder: rename(folder, lambda name: None if name == "model.norm.weight" else name),
    "all, by peft's prefix": lambda folder: rename(folder, lambda name: f"base_model.model.{name}"),
    "all, by DataParallel's prefix": lambda folder: rename(folder, lambda name: f"module.{name}"),
    "some, by peft's ending": lambda folder: rename(folder, lambda name: name.replace("q_proj.", "q_proj.base_layer.")),
    "an untied head": untie,
    "a head that is untied by default": forget_to_tie,
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_tensor_is_named_and_never_drawn_at_random(folder: Path, what: str) -> None:
    MISSING[what](folder)

    message = refusal(folder)

    assert "lack" in message
    assert "such as model." in message or "such as lm_head.weight" in message


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", text_config={**config["text_config"], "intermediate_size": 256})

    message = refusal(folder)

    assert "mlp" in message
    assert "256" in message


def test_old_names_extra_tensors_and_heads_of_tied_models_are_accepted(folder: Path) -> None:
    before = answer(folder)
    weights = load_file(folder / WEIGHTS)
    head = weights["model.embed_tokens.weight"].clone()
    save_file({**weights, "mtp.norm.weight": torch.ones(4), "lm_head.weight": head}, folder / WEIGHTS, {"format": "pt"})

    assert answer(folder) == before


def test_new_names_are_accepted(folder: Path) -> None:
    before = answer(folder)
    names = {"visual.": "model.visual.", "model.": "model.language_model."}
    rename(
        folder, lambda name: next(new + name.removeprefix(old) for old, new in names.items() if name.startswith(old))
    )

    assert answer(folder) == before


def test_what_transformers_itself_reports_as_missing_is_refused_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MISSING["a layer"](folder)
    real = preflight.check_checkpoint
    monkeypatch.setattr(
        "qwenvl_kit.torch_backend.backend.check_checkpoint", lambda _, **__: preflight.Tokens((1,), 0, 1024)
    )
    spec = make_spec(Config(model_name=str(folder)))
    monkeypatch.setattr("qwenvl_kit.torch_backend.backend.check_checkpoint", real)

    with pytest.raises(CheckpointError, match="lack"):
        spec.load()


def in_shards(folder: Path) -> list[Path]:
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in parts.items():
        save_file({name: weights[name].clone() for name in part}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS).unlink()
    return [folder / file for file in parts]


@pytest.mark.parametrize("n_left", [0, 1])
def test_a_download_that_broke_off_is_recognised(folder: Path, n_left: int, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in in_shards(folder)[n_left:]:
        shard.unlink()

    message = refusal(folder)

    assert f"{2 - n_left} of 2 files" in message
    assert f"model-0000{n_left + 1}-of-00002.safetensors" in message
    assert "local_files_only=False" in message
    assert main(["doctor", "--model-name", str(folder)]) == 1
    assert "missing" in capsys.readouterr().out


def test_shards_without_their_index_and_no_weights_at_all_are_distinguished_from_other_formats(folder: Path) -> None:
    in_shards(folder)
    (folder / INDEX).unlink()
    assert INDEX in refusal(folder)

    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    assert "local_files_only=False" in refusal(folder)

    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "run code" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../model-00001.safetensors", "/etc/passwd.safetensors", "a/b.safetensors", "x.bin", 1]
)
def test_an_index_names_files_of_its_folder_only(folder: Path, name: object) -> None:
    in_shards(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))

    assert repr(name) in refusal(folder)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{", '{"weight_map": {"a": []}}']
)
def test_an_index_that_is_none_is_refused(folder: Path, content: str) -> None:
    in_shards(folder)
    (folder / INDEX).write_text(content)

    assert INDEX in refusal(folder)


def adapter_alone(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    adapter_beside_whole_weights(folder)


def adapter_with_the_base_config(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    adapter_beside_whole_weights(folder)


def adapter_beside_whole_weights(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("change", [adapter_alone, adapter_with_the_base_config, adapter_beside_whole_weights])
def test_a_lora_adapter_is_recognised(folder: Path, change: Change, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder)

    message = refusal(folder)

    assert "LoRA adapter" in message
    assert "merge" in message
    assert main(["doctor", "--model-name", str(folder)]) == 1
    assert "LoRA adapter" in capsys.readouterr().out


def lfs_pointer(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    return change


def cut(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return change


def config_json(**changes: Any) -> Change:
    return lambda folder: edit(folder / "config.json", **changes)


def generation(**changes: Any) -> Change:
    return lambda folder: edit(folder / "generation_config.json", **changes)


def processor(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "processor_config.json").unlink()
        edit(folder / "preprocessor_config.json", **changes)

    return change


def template(text: str) -> Change:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def text_config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        text = json.loads((folder / "config.json").read_text())["text_config"]
        edit(folder / "config.json", text_config={**text, **changes})

    return change


TEXT_ONLY = "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}{{ 'assistant' }}"
NO_HEADER = b"\x08" + b"\0" * 7 + b"[1,2,3] "  # a length, and JSON that is no mapping
VISION = "<|vision_start|><|image_pad|><|vision_end|>"
UNUSABLE: dict[str, tuple[Change, str]] = {
    "template for texts": (template(TEXT_ONLY), "0 places"),
    "template that drops pictures": (template("{{ 'assistant' }}"), "0 places"),
    "template with one place for any number": (template(VISION + "Describe this picture. assistant"), "and 1 for two"),
    "template that drops the prompt": (
        template("{% for c in messages[-1].content if c.type == 'image' %}" + VISION + "{% endfor %}assistant"),
        "leaves the prompt out",
    ),
    "template without a generation prompt": (
        template(
            "{% for c in messages[-1].content %}{% if c.type == 'image' %}"
            + VISION
            + "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>"
        ),
        "add_generation_prompt",
    ),
    "template that raises": (template("{{ raise_exception('no pictures') }}"), "no pictures"),
    "template that is no template": (template("{% for %}"), "chat template"),
    "no template": (without("chat_template.jinja"), "chat template"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json"),
    "tokenizer cut short": (cut("tokenizer.json"), "tokenizer"),
    "tokenizer by git-lfs": (lfs_pointer("tokenizer.json"), "git lfs pull"),
    "weights by git-lfs": (lfs_pointer(WEIGHTS), "git lfs pull"),
    "config by git-lfs": (lfs_pointer("config.json"), "git lfs pull"),
    "weights cut short": (cut(WEIGHTS), "cut short"),
    "weights empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "cut short"),
    "weights of something else": (lambda folder: (folder / WEIGHTS).write_bytes(NO_HEADER), "safetensors"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "list"),
    "config deep": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json"),
    "generation config a list": (lambda folder: (folder / "generation_config.json").write_text("[]"), "list"),
    "text config a list": (config_json(text_config=[]), "text_config"),
    "text config a number": (config_json(text_config=3), "text_config"),
    "vision config text": (config_json(vision_config="x"), "vision_config"),
    "a size that is text": (text_config(hidden_size="large"), "config.json"),
    "heads that do not divide": (text_config(num_attention_heads=0), ""),
    "context that is text": (text_config(max_position_embeddings="many"), "max_position_embeddings"),
    "awq": (config_json(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128}), "awq"),
    "gptq": (config_json(quantization_config={"quant_method": "gptq", "bits": 4}), "gptq"),
    "bitsandbytes": (config_json(quantization_config={"quant_method": "bitsandbytes"}), "bitsandbytes"),
    "compressed-tensors": (config_json(quantization_config={"quant_method": "compressed-tensors"}), "compressed"),
    "unknown quantisation": (config_json(quantization_config={"quant_method": "mine"}), "mine"),
    "quantisation a list": (config_json(quantization_config=[1]), "config.json"),
    "end beyond the vocabulary": (generation(eos_token_id=[5000]), "unusable eos"),
    "end negative": (generation(eos_token_id=-1), "unusable eos"),
    "end as text": (generation(eos_token_id="<|im_end|>"), "unusable eos"),
    "end a mapping": (generation(eos_token_id={"a": 1}), "unusable eos"),
    "end among nulls": (generation(eos_token_id=[None]), "unusable eos"),
    "no penalty at all": (generation(repetition_penalty=0), "repetition_penalty"),
    "penalty as text": (generation(repetition_penalty="much"), "repetition_penalty"),
    "another image token": (config_json(image_token_id=5), "image_token_id"),
    "another patch size": (processor(patch_size=16), "patch_size"),
    "another merge size": (processor(merge_size=4), "merge_size"),
    "patch size as text": (processor(patch_size="large"), "patch_size"),
    "mean as text": (processor(image_mean="x"), "image processor"),
    "deviation of zero": (processor(image_std=[0.0, 0.0, 0.0]), "image processor"),
    "size a number": (processor(size=448), "size"),
    "another image processor": (processor(image_processor_type="CLIPImageProcessor"), "Qwen2VLImageProcessor"),
    "an unknown image processor": (processor(image_processor_type="MyImageProcessor"), "processor"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_unusable_checkpoint_is_refused_with_its_folder_and_the_cause(folder: Path, what: str) -> None:
    if what == "compressed-tensors" and importlib.util.find_spec("compressed_tensors"):
        pytest.skip("the package that reads it is installed, as vLLM does")
    change, cause = UNUSABLE[what]
    change(folder)

    assert cause in refusal(folder)


def flat_text_config(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", **{k: v for k, v in text.items() if k != "model_type"}, text_config=None)


def without_a_pad_token(folder: Path) -> None:
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def end_in_the_tokenizer_only(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    text_config(eos_token_id=None)(folder)


USABLE: dict[str, Change] = {
    "end null": generation(eos_token_id=None),
    "end named by the tokenizer": end_in_the_tokenizer_only,
    "text config null": flat_text_config,
    "image processor of an early release": processor(image_processor_type="Qwen2_5_VLImageProcessor"),
    "patch size null": processor(patch_size=None),
    "mean null": processor(image_mean=None),
    "size a number beside limits": processor(size=448, min_pixels=9408, max_pixels=14400),
    "no pad token": without_a_pad_token,
    "quantisation null": config_json(quantization_config=None),
    "image processor of torchvision": processor(image_processor_type="Qwen2VLImageProcessorFast"),
    "penalty null": generation(repetition_penalty=None),
}


@pytest.mark.parametrize("what", USABLE)
def test_a_value_missing_in_one_config_is_taken_from_another(folder: Path, what: str, demo_answer: str) -> None:
    USABLE[what](folder)

    assert answer(folder) == demo_answer


@pytest.fixture(scope="module")
def demo_answer() -> str:
    return answer(model_dir())


def test_a_token_that_the_model_lacks_is_that_rows_error() -> None:
    processor = load_processor(read(model_dir()))
    request = Request(0, (LoadedImage(PICTURE, "", (112, 112)),), "What?", None, None, 4)
    assert InputProcessor(processor, 999, vocab_size=len(processor.tokenizer)).encode(request).prompt_ids

    with pytest.raises(RowError, match="vocabulary of 900 tokens"):
        InputProcessor(processor, 999, vocab_size=900).encode(request)


def test_a_half_download_in_the_hubs_cache_is_recognised(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_shards(folder)
    cache = tmp_path / "hub"
    repository = cache / "models--Qwen--tiny"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.move(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    make_spec(Config(model_name="Qwen/tiny"))  # links into the blobs are read

    (blobs / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors.*local_files_only=False"):
        make_spec(Config(model_name="Qwen/tiny"))


def test_published_and_embedded_checkpoints_pass(published: Path) -> None:
    make_spec(Config(model_name=str(published)))
    make_spec(Config(model_name="demo"))


def test_the_check_is_cheap_and_made_once_for_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_spec(Config(model_name="demo"))  # imports
    checked: list[Path] = []
    real = preflight.check_weights
    monkeypatch.setattr(
        preflight, "check_weights", lambda one, *rest, **named: (checked.append(one.path), real(one, *rest, **named))
    )
    started = time.perf_counter()
    make_spec(Config(model_name=str(folder)))
    first = time.perf_counter() - started
    make_spec(Config(model_name=str(folder)))

    assert checked == [folder]
    assert first < 5, "a tenth of a second on a quiet machine"

    MISSING["a layer"](folder)
    assert "lack" in refusal(folder)

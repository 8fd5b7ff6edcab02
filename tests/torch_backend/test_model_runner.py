"""Images, prompts and steps in slots give the numbers of transformers' own forward of the whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import make_published
from helpers.flash_kernel import flash_on_cpu
from helpers.pretended_graphs import replay_on_cpu
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

import qwenvl_kit.torch_backend.model_runner as runners
from qwenvl_kit import Config
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference import packing
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.inference.mrope import mrope_positions
from qwenvl_kit.inference.patches import upload
from qwenvl_kit.torch_backend import row_blocks
from qwenvl_kit.torch_backend.kv_cache import PrefillWrite
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner
from qwenvl_kit.torch_backend.onednn.linear import can_prepack
from qwenvl_kit.torch_backend.onednn.text import prepack_text
from qwenvl_kit.torch_backend.onednn.vision import prepack_vision
from qwenvl_kit.torch_backend.vision import fuse_vision

NEAR = {"atol": 2e-4, "rtol": 1e-4}  # of logits up to 50; float32 summed in another order
GRIDS = torch.tensor([[1, 4, 6], [1, 10, 22], [1, 18, 8], [1, 16, 16]])  # windows are 8 × 8 patches: full and cut ones


@pytest.fixture(scope="module", params=["published", "sliding"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sliding = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    text = sliding if request.param == "sliding" else {}
    return make_published(tmp_path_factory.mktemp(request.param), text=text)


def load(folder: Path) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return load(folder)


@pytest.fixture(scope="module", params=["plain", "fused", "slots", "recorded", "prepacked", "compiled"])
def model_runner(folder: Path, request: pytest.FixtureRequest) -> Iterator[TorchModelRunner]:
    model = load(folder)
    with ExitStack() as held:
        if request.param == "fused":
            fuse_vision(model.model.visual)
        if request.param == "slots":  # torch's flash kernel, which has no windows
            held.enter_context(flash_on_cpu())
            patch = held.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(runners, "kernel_fault", lambda text: "windows" if text.has_sliding_layers else None)
        if request.param == "recorded":
            held.enter_context(replay_on_cpu())
        if request.param == "prepacked":
            assert can_prepack(model)
            prepack_vision(model.model.visual)
            prepack_text(model.model.language_model)
        yield TorchModelRunner(model, compiles=request.param == "compiled")


class Text:
    """A prompt of one image and then words, and its logits from transformers."""

    def __init__(self, model: Any, grid: Tensor, words: list[int]) -> None:
        image = model.config.image_token_id
        self.grid, self._model = grid[None], model
        self.patches = torch.randn(int(grid.prod()), 1176, generator=torch.Generator().manual_seed(int(grid[1])))
        self.prompt = [5, 6, 7, *[image] * (int(grid.prod()) // 4), *words]
        self.image = image

    def positions(self, output: list[int]) -> Tensor:
        grids = [tuple(self.grid[0].tolist())]
        positions, following = mrope_positions(self.prompt, grids, image_id=self.image, merge=2)  # type: ignore[arg-type]
        return torch.cat([torch.tensor(positions), following + torch.arange(len(output)).expand(3, -1)], dim=1)

    @torch.inference_mode()
    def logits(self, output: list[int]) -> Tensor:
        """Of the last token, by one forward of everything."""
        core = self._model.model
        embedded = core.get_input_embeddings()(torch.tensor([[*self.prompt, *output]]))
        seen = core.get_image_features(self.patches, self.grid, return_dict=True).pooler_output[0]
        embedded[0, 3 : 3 + len(seen)] = seen
        hidden = core.language_model(inputs_embeds=embedded, position_ids=self.positions(output)[:, None])
        return self._model.lm_head(hidden.last_hidden_state[0, -1])  # type: ignore[no-any-return]

    def chunk(self, model_runner: TorchModelRunner, slot: int, output: list[int], cached_len: int = 0) -> PrefillChunk:
        ids = torch.tensor([*self.prompt, *output])
        features = None if cached_len else model_runner.encode_images(self.patches, self.grid)[0]
        return PrefillChunk(slot, ids[cached_len:], self.positions(output)[:, cached_len:], cached_len, features)


@pytest.fixture(scope="module")
def texts(reference: Any) -> list[Text]:
    return [Text(reference, grid, list(range(20, 24 + 3 * at))) for at, grid in enumerate(GRIDS)]


def test_images_are_encoded_alike_alone_and_together(
    reference: Any, model_runner: TorchModelRunner, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        wanted = reference.model.get_image_features(
            torch.cat([text.patches for text in texts]), GRIDS, return_dict=True
        ).pooler_output
    for most in (1, 300, 10_000):
        monkeypatch.setattr("qwenvl_kit.torch_backend.model_runner.max_image_patches", lambda _, most=most: most)
        seen = model_runner.encode_images(torch.cat([text.patches for text in texts]), GRIDS)
        for one, other in zip(seen, wanted, strict=True):
            torch.testing.assert_close(one, other, **NEAR)


@pytest.mark.parametrize(("max_rows", "max_pairs"), [(50, 10_000), (2048, 700), (7, 1)])
def test_large_images_are_encoded_alike_in_blocks(
    reference: Any,
    model_runner: TorchModelRunner,
    texts: list[Text],
    max_rows: int,
    max_pairs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "_BLOCK_ROWS", {"cpu": max_rows})
    monkeypatch.setattr(row_blocks, "_MAX_PAIRS", {"cpu": max_pairs})
    patches = torch.cat([text.patches for text in texts])
    with torch.inference_mode():
        wanted = reference.model.get_image_features(patches, GRIDS, return_dict=True).pooler_output

    seen = model_runner.encode_images(patches, GRIDS)

    for one, other in zip(seen, wanted, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


def test_patches_travel_to_a_gpu_from_pinned_memory_without_waiting() -> None:
    class Patches:
        device = torch.device("cpu")
        is_pinned = False

        def pin_memory(self) -> Patches:
            self.is_pinned = True
            return self

        def to(self, device: torch.device, *, non_blocking: bool = False) -> tuple[str, bool, bool]:
            return device.type, self.is_pinned, non_blocking

    assert upload(Patches(), torch.device("cuda")) == ("cuda", True, True)  # type: ignore[arg-type, comparison-overlap]
    here = torch.ones(2)
    assert upload(here, torch.device("cpu")) is here


@pytest.mark.parametrize("most", [1, 150, 10_000])
def test_prompts_of_any_length_are_read_into_any_slots(
    model_runner: TorchModelRunner, texts: list[Text], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl_kit.torch_backend.model_runner.max_prefill_tokens", lambda _: most)
    model_runner.resize_cache(0, 0)
    model_runner.resize_cache(4, 128)

    logits = model_runner.prefill(
        [text.chunk(model_runner, slot, []) for slot, text in zip((2, 0, 3, 1), texts, strict=True)]
    )

    torch.testing.assert_close(logits, torch.stack([text.logits([]) for text in texts]), **NEAR)


def steps(model_runner: TorchModelRunner, texts: list[Text], outputs: list[list[int]], words: list[int]) -> Tensor:
    for output, word in zip(outputs, words, strict=True):
        output.append(word)
    lengths = [len(text.prompt) + len(output) - 1 for text, output in zip(texts, outputs, strict=True)]
    positions = [int(text.positions(output)[0, -1]) for text, output in zip(texts, outputs, strict=True)]
    return model_runner.decode(torch.tensor(words), torch.tensor(positions), torch.tensor(lengths), max(lengths) + 1)


def test_steps_of_rows_of_unlike_length_and_moved_rows(model_runner: TorchModelRunner, texts: list[Text]) -> None:
    model_runner.resize_cache(0, 0)
    model_runner.resize_cache(3, 96)
    texts = [texts[0], texts[3], texts[1]]
    outputs: list[list[int]] = [[], [], []]
    model_runner.prefill([text.chunk(model_runner, slot, []) for slot, text in enumerate(texts)])
    for words in ([30, 40, 50], [31, texts[0].image, 51]):
        logits = steps(model_runner, texts, outputs, words)
    torch.testing.assert_close(logits, torch.stack([t.logits(s) for t, s in zip(texts, outputs, strict=True)]), **NEAR)

    model_runner.copy_slot(2, 0, len(texts[2].prompt) + 2)  # the first row leaves, the last takes its slot
    model_runner.resize_cache(4, 200)
    texts, outputs = [texts[2], texts[1]], [outputs[2], outputs[1]]
    logits = steps(model_runner, texts, outputs, [60, 61])

    torch.testing.assert_close(logits, torch.stack([t.logits(s) for t, s in zip(texts, outputs, strict=True)]), **NEAR)


def test_the_rest_of_a_prompt_behind_a_beginning_that_another_row_read(
    model_runner: TorchModelRunner, texts: list[Text]
) -> None:
    model_runner.resize_cache(0, 0)
    model_runner.resize_cache(4, 128)
    first, short, long = texts[1], texts[1], texts[3]
    model_runner.prefill([first.chunk(model_runner, 0, []), long.chunk(model_runner, 1, [])])
    cached_len = len(first.prompt) - 2
    model_runner.copy_slot(0, 3, cached_len)
    model_runner.copy_slot(1, 2, len(long.prompt))

    output = [44, long.image, 46, 47, 48]
    logits = model_runner.prefill(
        [short.chunk(model_runner, 3, [], cached_len), long.chunk(model_runner, 2, output, len(long.prompt))]
    )

    torch.testing.assert_close(logits, torch.stack([short.logits([]), long.logits(output)]), **NEAR)


@torch.inference_mode()
def test_a_wiped_slot_has_nothing_of_a_row_that_overflowed(model_runner: TorchModelRunner, texts: list[Text]) -> None:
    model_runner.resize_cache(0, 0)
    model_runner.resize_cache(2, 128)
    short, long = texts[0], texts[3]
    model_runner.prefill([long.chunk(model_runner, 0, []), long.chunk(model_runner, 1, [])])
    for held in model_runner.cache.layers.values():
        for part in held:
            part[0] = torch.nan

    for is_wiped in (False, True):
        if is_wiped:
            model_runner.zero_slot(0)
        model_runner.prefill([short.chunk(model_runner, 0, [])])
        outputs: list[list[int]] = [[], []]
        logits = steps(model_runner, [short, long], outputs, [30, 31])
        reads_all = model_runner.step_kernel_fault is not None  # also what the mask excludes
        assert bool(logits[0].isfinite().all()) == (is_wiped or not reads_all), "else this test would show nothing"

    torch.testing.assert_close(logits, torch.stack([short.logits(outputs[0]), long.logits(outputs[1])]), **NEAR)


def test_what_pads_a_prompt_is_not_kept() -> None:
    held, new = torch.zeros(3, 1, 6, 2), torch.full((2, 1, 4, 2), torch.nan)
    new[0, :, :2], new[1] = 1, 2

    assert PrefillWrite([2, 0], [2, 4])(held, new) is new

    assert held[:, 0, :, 0].tolist() == [[2, 2, 2, 2, 0, 0], [0] * 6, [1, 1, 0, 0, 0, 0]]


def test_a_row_that_is_read_again_with_what_it_said_goes_on_alike(
    model_runner: TorchModelRunner, texts: list[Text]
) -> None:
    model_runner.resize_cache(0, 0)
    model_runner.resize_cache(1, 128)
    output = [40, texts[2].image, 41]

    logits = model_runner.prefill([texts[2].chunk(model_runner, 0, output)])

    torch.testing.assert_close(logits[0], texts[2].logits(output), **NEAR)


def test_packed_models_keep_no_second_copy_of_their_weights(folder: Path) -> None:
    model = load(folder)
    n_before = sum(weights.numel() for weights in model.parameters())
    prepack_vision(model.model.visual)
    prepack_text(model.model.language_model)

    plain = {name: weights.numel() for name, weights in model.named_parameters()}
    ends = {"model.language_model.embed_tokens.weight", "lm_head.weight"}  # the table and the head, often one
    assert set(plain) == {name for name in plain if "norm" in name or "ln_q" in name or name in ends}
    packed = sum(layer.numel() for name, layer in model.named_buffers() if name.endswith(("prepacked", "bias")))
    assert sum(plain.values()) + packed == n_before


@pytest.mark.parametrize("change", [lambda model: model.to(torch.bfloat16), lambda model: model.to("meta")])
def test_only_float32_in_memory_is_packed(folder: Path, change: Callable[[Any], Any]) -> None:
    assert not can_prepack(change(load(folder)))


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_weights_packed_from_their_stored_dtype_are_those_that_transformers_converts(
    stored: str, tmp_path: Path
) -> None:
    checkpoint = make_published(tmp_path / stored)
    for file in checkpoint.glob("*.safetensors"):
        save_file({name: tensor.to(getattr(torch, stored)) for name, tensor in load_file(file).items()}, file)
    model = load(checkpoint)
    prepack_vision(model.model.visual)
    prepack_text(model.model.language_model)

    ours: Any = make_spec(Config(model_name=str(checkpoint), dtype="float32", use_flash_attention_2=False)).load()

    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {**dict(ours._model.named_parameters()), **dict(ours._model.named_buffers())}
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype == torch.float32
        assert torch.equal(tensor.to_dense(), wanted[name].to_dense()), name
    ours.close()


def test_answers_that_share_beginnings_are_scored_in_one_pass(
    model_runner: TorchModelRunner, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "_LOGIT_ROWS", 4)
    model_runner.resize_cache(0, 0)
    model_runner.resize_cache(2, 128)
    answers = [[30, 31, 32, 33, 1], [30, 31, 40, 1], [30, 1], [50, 51, 52, 53, 54, 55, 56, 1], [60, 1]]
    for slot, text in ((1, texts[1]), (0, texts[3])):
        model_runner.prefill([text.chunk(model_runner, slot, [])])
    for slot, text in ((1, texts[1]), (0, texts[3])):
        position = int(text.positions([30])[0, -1])
        scores = model_runner.score(slot, len(text.prompt), position, answers)

        for answer, found in zip(answers, scores, strict=True):
            wanted = [text.logits(answer[:at]).log_softmax(0)[answer[at]] for at in range(1, len(answer))]
            torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=0)

    outputs: list[list[int]] = [[], []]  # slots are left as they were
    logits = steps(model_runner, [texts[3], texts[1]], outputs, [30, 40])
    wanted_logits = [texts[3].logits([30]), texts[1].logits([40])]
    torch.testing.assert_close(logits, torch.stack(wanted_logits), **NEAR)

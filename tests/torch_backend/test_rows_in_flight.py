"""Rows in flight of a real model: as many as fit in memory, the same answers, and what ran on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import qwenvl_kit
from qwenvl_kit import Config
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference import cache_memory
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.torch_backend.kv_cache import SlottedKVCache
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner
from qwenvl_kit.torch_backend.text_layers import device_of

DEMO: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "use_flash_attention_2": False, "progress": False}
TOKEN = 5120  # bytes of keys and values in float32; a test below


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    yield
    qwenvl_kit.unload()


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows of each decode step, and the slots and bytes of the cache."""
    seen: list[tuple[int, int, int]] = []
    decode = TorchModelRunner.decode

    def watched(runner: TorchModelRunner, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((len(ids), len(runner.cache.layers[0][0]), _held(runner.cache)))
        return decode(runner, ids, *rest)

    monkeypatch.setattr(TorchModelRunner, "decode", watched)
    return seen


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set how many bytes a machine has for all caches."""
    caches: dict[int, SlottedKVCache] = {}
    update = SlottedKVCache.update

    def watched(cache: SlottedKVCache, *args: Any, **kwargs: Any) -> Any:
        caches[id(cache)] = cache
        return update(cache, *args, **kwargs)

    def set_limit(n_bytes: int) -> None:
        monkeypatch.setattr(cache_memory, "available_memory", lambda: n_bytes - sum(map(_held, caches.values())))

    monkeypatch.setattr(SlottedKVCache, "update", watched)
    return set_limit


def _held(cache: SlottedKVCache) -> int:
    return sum(tensor.nbytes for layer in cache.layers.values() for tensor in layer)


def rows_note(run: pd.DataFrame) -> str:
    (note,) = (note for note in run.attrs["effective"]["notes"] if "in flight" in note)
    return str(note)


def test_more_rows_than_images_in_a_forward_generate_by_default_and_none_changes_an_answer(
    pictures: list[Image.Image], sizes: list[tuple[int, int, int]]
) -> None:
    cells = pd.Series(pictures)
    alone = cells.vl.caption(rows_in_flight=1, **DEMO).tolist()
    assert max(n_rows for n_rows, _, _ in sizes) == 1
    sizes.clear()

    run = cells.vl.run(**DEMO)

    assert run["text"].tolist() == alone
    assert run.attrs["effective"]["batch_size"] == 4
    assert run.attrs["effective"]["rows_in_flight"] == "auto"
    n_rows, n_slots, n_bytes = map(max, zip(*sizes, strict=True))
    assert (n_rows, n_slots) == (16, 16)
    assert rows_note(run) == f"16 rows in flight ({n_bytes / 2**20:.0f} MiB of keys and values)."


def test_in_a_container_with_little_memory_few_rows_run_and_all_are_answered(
    pictures: list[Image.Image], sizes: list[tuple[int, int, int]], limit: Callable[[int], None]
) -> None:
    limit(2 * 5 * 320 * TOKEN)  # half of which is for other uses

    run = pd.Series(pictures).vl.run(**DEMO)

    assert (run["status"] == "ok").all()
    assert max(n_rows for n_rows, _, _ in sizes) <= 5
    assert max(n_bytes for _, _, n_bytes in sizes) <= 5 * 320 * TOKEN
    assert rows_note(run).startswith("5 rows in flight (")


def test_a_number_of_rows_is_kept_and_beyond_free_memory_fewer_run_and_it_says_so(
    pictures: list[Image.Image], sizes: list[tuple[int, int, int]], limit: Callable[[int], None]
) -> None:
    cells = pd.Series(pictures)
    kept = cells.vl.run(rows_in_flight=20, **DEMO)
    assert max(n_rows for n_rows, _, _ in sizes) == 20
    assert not [note for note in kept.attrs["effective"]["notes"] if "sequences" in note]

    sizes.clear()
    limit(6 * 320 * TOKEN)
    fewer = cells.vl.run(rows_in_flight=20, **DEMO)

    assert fewer["text"].tolist() == kept["text"].tolist()
    assert max(n_rows for n_rows, _, _ in sizes) == 6
    assert [note for note in fewer.attrs["effective"]["notes"] if "sequences" in note] == [
        "Out of memory for 20 sequences; continuing with at most 6 (9 MiB of keys and values)."
    ]


def test_one_large_image_does_not_set_the_room_of_all_rows(
    published: Path, pictures: list[Image.Image], sizes: list[tuple[int, int, int]]
) -> None:
    options = {**DEMO, "model_name": str(published), "max_pixels": 784 * 2000, "max_caption_length": 8}
    small = [picture.resize((56, 56)) for picture in pictures[:15]]
    cells = pd.Series([*small[:5], Image.new("RGB", (1120, 1120), "red"), *small[5:]])

    alone = cells.vl.caption(rows_in_flight=1, **options).tolist()
    largest_row = max(n_bytes for _, _, n_bytes in sizes)
    sizes.clear()
    run = cells.vl.caption(rows_in_flight=16, **options).tolist()

    assert run == alone
    assert max(n_rows for n_rows, _, _ in sizes) >= 15 - 4
    assert max(n_bytes for _, _, n_bytes in sizes) <= 4 * largest_row, "16 of its size without care"


def test_the_bytes_of_a_token_are_those_of_the_cache() -> None:
    backend: Any = make_spec(Config(**DEMO)).load()
    cache: SlottedKVCache = backend.model_runner.cache
    backend.model_runner.resize_cache(3, 64)
    positions = torch.arange(2).expand(3, -1)
    backend.model_runner.prefill([PrefillChunk(0, torch.tensor([5, 6]), positions)])

    assert _held(cache) == 3 * 64 * backend._cache_memory.bytes_per_token == 3 * 64 * TOKEN
    assert dict(backend._cache_memory.layers) == {torch.device("cpu"): 5}


@pytest.mark.parametrize(("place", "device"), [(1, "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu"), (None, "cpu")])
def test_a_layer_computes_where_accelerates_hook_says_else_where_its_weights_are(
    place: int | str | None, device: str
) -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    layer[0]._hf_hook = SimpleNamespace(execution_device=place)  # type: ignore[assignment]

    assert device_of(layer) == torch.device(device)
    assert device_of(nn.Linear(2, 2, device="meta")) is None

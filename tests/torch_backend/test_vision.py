"""The vision tower without its convolution and without waits per block, also where accelerate moves its weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checkpoints import make_published
from helpers.needs import fake_cuda
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2_5_VLForConditionalGeneration

from qwenvl_kit import Config
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.torch_backend import windows
from qwenvl_kit.torch_backend.backend import TorchBackend
from qwenvl_kit.torch_backend.vision import fuse_vision
from qwenvl_kit.torch_backend.windows import Windows, full_lengths, has_varlen_kernel, window_lengths

GRID = torch.tensor([[1, 10, 22], [1, 18, 8], [1, 16, 16]])  # windows are 8 × 8 patches: full and cut ones
N_PATCHES = int(GRID.prod(dim=1).sum())
ON_DISK: dict[str, str] = {"model.visual": "disk", "model.language_model": "cpu", "lm_head": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_published(tmp_path_factory.mktemp("published"))


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, **options
    ).eval()


def patches(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(N_PATCHES, 1176, generator=torch.Generator().manual_seed(0)).to(dtype)


def encoded(visual: Any, pixel_values: Tensor, grid: Tensor = GRID) -> Tensor:
    with torch.inference_mode():
        return visual(pixel_values, grid_thw=grid, return_dict=True).pooler_output


class Ops(TorchDispatchMode):
    """Count the operations that torch dispatches, and reads of tensors from the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        tolist = torch.Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            self.counts["tolist"] += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_patches_are_embedded_as_by_the_convolution(folder: Path, dtype: torch.dtype) -> None:
    stock, fused = load(folder, dtype).model.visual, load(folder, dtype).model.visual
    fuse_vision(fused)
    exact = load(folder).double().model.visual.patch_embed(patches(dtype).double())

    ours, theirs = fused.patch_embed(patches(dtype)), stock.patch_embed(patches(dtype))

    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs)
    assert (ours - exact).abs().max() <= 1.5 * (theirs - exact).abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_accelerate_loads_from_disk_use_no_convolution_and_no_call_per_window(
    folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = encoded(load(folder, getattr(torch, dtype)).model.visual, patches(getattr(torch, dtype)))
    backend = make_spec(Config(model_name=str(folder), dtype=dtype, device_map=ON_DISK)).load()
    assert isinstance(backend, TorchBackend)
    try:
        with Ops(monkeypatch) as ops:
            seen = torch.cat(backend.model_runner.encode_images(patches(), GRID))
    finally:
        backend.close()

    tolerance = {"atol": 2e-4, "rtol": 1e-4} if dtype == "float32" else {"atol": 0.1, "rtol": 0.1}
    torch.testing.assert_close(seen, wanted, **tolerance)
    assert ops.counts["convolution"] == 0
    n_sdpa = sum(n for name, n in ops.counts.items() if "scaled_dot_product" in name)
    assert n_sdpa <= 4 * 6, "one call per block and length of windows, of which there are 15 in each pass"


def test_waits_and_layouts_of_a_pass_do_not_grow_with_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    for depth in (4, 8):
        vision = {"depth": depth, "fullatt_block_indexes": [1, 3]}
        visual = load(make_published(tmp_path / str(depth), vision=vision)).model.visual
        fuse_vision(visual)
        with Ops(monkeypatch) as ops:
            encoded(visual, patches())
        counted.append({name: ops.counts[name] for name in ("tolist", "arange", "_local_scalar_dense", "unique_dim")})

    assert counted[0] == counted[1]


@fake_cuda()
@pytest.mark.parametrize("has_kernel", [True, False])
def test_on_a_gpu_blocks_never_wait_and_the_flash_kernel_is_called_once_a_block(
    folder: Path, has_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "has_varlen_kernel", lambda *_: has_kernel)
    monkeypatch.setattr(windows, "upload", lambda tensor, device: torch.empty_like(tensor, device=device))
    visual = load(folder, torch.bfloat16).model.visual
    laid_out: list[Windows] = []
    monkeypatch.setattr("qwenvl_kit.torch_backend.vision.Windows", lambda v: laid_out.append(Windows(v)) or laid_out[0])
    fuse_vision(visual)
    laid_out[0].start_pass(GRID.tolist())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        states = torch.empty(N_PATCHES, 48, dtype=torch.bfloat16, device="cuda:0")
        angles = (torch.empty(N_PATCHES, 12, device="cuda:0"), torch.empty(N_PATCHES, 12, device="cuda:0"))
        for module in visual.blocks.modules():
            for name, weight in module._parameters.items():
                module._parameters[name] = None if weight is None else torch.empty_like(weight, device="cuda:0")
        ops = Ops(monkeypatch)
        with ops:  # reading a fake tensor from the host raises
            for block in visual.blocks:
                states = block(states, cu_seqlens=None, position_embeddings=angles)

    assert states.device == torch.device("cuda:0")
    assert ops.counts["_flash_attention_forward"] == (len(visual.blocks) if has_kernel else 0)
    assert ops.counts["tolist"] == ops.counts["_local_scalar_dense"] == 0
    if has_kernel:
        assert ops.counts["index"] == ops.counts["index_put_"] == 0, "nothing is gathered"


def test_the_flash_kernel_gets_the_windows_of_the_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reference(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scaling: float) -> Tensor:
        assert borders.dtype == torch.int32
        assert borders.diff().max() == longest
        window = torch.repeat_interleave(torch.arange(len(borders) - 1), borders.diff())
        products = torch.einsum("phd,qhd->hpq", query, key) * scaling
        products.masked_fill_(window[:, None] != window, -torch.inf)
        return torch.einsum("hpq,qhd->phd", products.softmax(-1), value)

    wanted = encoded(load(folder).model.visual, patches())
    monkeypatch.setattr(windows, "has_varlen_kernel", lambda *_: True)
    monkeypatch.setattr(windows, "attend_varlen", reference)
    visual = load(folder).model.visual
    fuse_vision(visual)

    torch.testing.assert_close(encoded(visual, patches()), wanted, atol=2e-4, rtol=1e-4)


class Seen(torch.nn.Module):
    """A block that keeps the borders which transformers passes to it."""

    def forward(self, states: Tensor, *, cu_seqlens: Tensor, **_: Any) -> Tensor:
        self.lengths = cu_seqlens.diff().tolist()
        return states


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    visual = load(folder).model.visual
    visual.blocks = torch.nn.ModuleList([Seen(), Seen()])  # within windows, and within images
    return visual


side = st.integers(1, 24).map(lambda n: 2 * n)


@given(st.lists(st.tuples(st.integers(1, 2), side, side), min_size=1, max_size=3))
def test_windows_are_those_of_transformers(stock: Any, grids: list[tuple[int, int, int]]) -> None:
    grid = torch.tensor(grids)
    encoded(stock, torch.zeros(int(grid.prod(dim=1).sum()), 1176), grid)

    assert window_lengths(grids, side=4, merge=2) == stock.blocks[0].lengths
    assert full_lengths(grids) == stock.blocks[1].lengths


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim"),
    [((7, 5), torch.float16, 80), ((9, 0), torch.float32, 80), ((9, 0), torch.float16, 12)],
)
def test_the_flash_kernel_is_not_tried_where_it_raises(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(windows, "_is_right", lambda *_: True)
    has_varlen_kernel.cache_clear()
    try:
        assert not has_varlen_kernel(torch.device("cuda:0"), dtype, head_dim)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        assert has_varlen_kernel(torch.device("cuda:0"), torch.bfloat16, 80)
    finally:
        has_varlen_kernel.cache_clear()


def test_a_map_that_loading_spreads_runs_eagerly_and_says_so(folder: Path) -> None:
    options = {"device_map": "sequential", "max_memory": {"cpu": 300_000}, "torch_compile": True}
    notes = run_notes(folder, **options)

    assert any(note.startswith("torch_compile=True is ignored (the device map moves modules") for note in notes)


def run_notes(folder: Path, **options: Any) -> list[str]:
    rows = pd.Series([np.zeros((84, 84, 3), np.uint8)]).vl.run(
        model_name=str(folder), dtype="float32", progress=False, max_caption_length=2, **options
    )
    assert rows["status"].tolist() == ["ok"], rows["error"].tolist()
    return list(rows.attrs["effective"]["notes"])

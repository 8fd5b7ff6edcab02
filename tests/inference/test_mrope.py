"""Positions are transformers' own, for any order of texts and pictures."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.demo import model_dir
from qwenvl_kit.inference.mrope import mrope_positions

_TEXT = 5
_PARTS = st.lists(
    st.one_of(st.integers(1, 20), st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9))), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(parts=_PARTS)
def test_positions_are_those_of_transformers(parts: list[int | tuple[int, int, int]]) -> None:
    config = AutoConfig.from_pretrained(model_dir())
    image_id, merge = config.image_token_id, config.vision_config.spatial_merge_size
    ids: list[int] = []
    grids: list[tuple[int, int, int]] = []
    for part in parts:
        if isinstance(part, int):
            ids += [_TEXT] * part
        else:
            grids.append((1, part[1] * merge, part[2] * merge))
            ids += [image_id] * (part[1] * part[2]) + [_TEXT]  # a chat template closes each picture with a token
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    tokens = torch.tensor([ids])
    wanted, delta = model.model.get_rope_index(
        tokens, (tokens == image_id).int(), image_grid_thw=torch.tensor(grids) if grids else None
    )
    positions, following = mrope_positions(ids, grids, image_id=image_id, merge=merge)
    assert positions.tolist() == wanted[:, 0].tolist()
    assert following == len(ids) + delta.item()

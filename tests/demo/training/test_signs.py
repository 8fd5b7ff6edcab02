"""Training reads signs by their digits, guides attention to them, and evaluation counts every answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwenvl_kit.demo.scenes import LARGE_WORLD, SIGN, Scene, hang_signs, sample_scenes
from qwenvl_kit.demo.training.evaluate_signs import judge_signs
from qwenvl_kit.demo.training.images import IGNORED, LABELS, pack_images
from qwenvl_kit.demo.training.losses import VisionHead, head_loss
from qwenvl_kit.demo.training.metrics import score
from qwenvl_kit.demo.training.rows import RowPacker
from qwenvl_kit.demo.training.tokenizer import build_tokenizer
from qwenvl_kit.demo.training.trainer import grown

PLAIN = sample_scenes(12, seed=1, world=LARGE_WORLD, split="train")
SIGNED = [hang_signs(scene, np.random.default_rng(row)) for row, scene in enumerate(PLAIN)]


def test_tokens_of_a_sign_are_labelled_with_its_digits() -> None:
    images = pack_images(SIGNED)
    for row, scene in enumerate(SIGNED):
        tens, units = divmod(scene.signs[0].number, 10)
        shown = images.owners[row] == SIGN
        assert shown.any()
        assert {LABELS["tens"][at] for at in images.labels["tens"][row][shown]} == {str(tens) if tens else "none"}
        assert {LABELS["units"][at] for at in images.labels["units"][row][shown]} == {str(units)}
        assert {LABELS["shape"][at] for at in images.labels["shape"][row][shown]} == {"none"}
        assert (images.labels["units"][row][~shown] == IGNORED).all()


def test_a_sign_takes_no_object_its_last_token() -> None:
    for row, owners in enumerate(pack_images(SIGNED).owners):
        assert set(range(len(SIGNED[row].things))) <= set(owners.tolist())


@pytest.mark.parametrize("scenes", [PLAIN, SIGNED], ids=["without signs", "with signs"])
def test_the_loss_of_the_head_is_finite_with_and_without_signs(scenes: list[Scene]) -> None:
    torch.manual_seed(0)
    images = pack_images(scenes)
    loss, figures = head_loss(VisionHead(16), torch.randn(len(scenes), images.owners.shape[1], 16), images)
    assert torch.isfinite(loss)
    assert all(np.isfinite(figure) for figure in figures.values())


def test_the_answer_is_written_in_the_digits_that_the_tokenizer_makes_of_it() -> None:
    tokenizer = build_tokenizer()
    packer = RowPacker(tokenizer, LARGE_WORLD)
    for row, scene in enumerate(SIGNED):
        packed = packer.pack([scene], pack_images([scene]), np.random.default_rng(row))
        number = str(scene.signs[0].number)
        digits = tokenizer.convert_tokens_to_ids(list(number))
        assert tokenizer(number)["input_ids"] == digits
        assert any(packed.targets[at : at + len(digits)].tolist() == digits for at in range(len(packed.targets)))


def test_an_answer_about_a_sign_is_guided_to_the_sign() -> None:
    tokenizer = build_tokenizer()
    packer = RowPacker(tokenizer, LARGE_WORLD)
    for row, scene in enumerate(SIGNED):
        images = pack_images([scene])
        packed = packer.pack([scene], images, np.random.default_rng(row))
        on_sign = (packed.focus == (images.owners[0] == SIGN)).all(dim=1)
        digits = {tokenizer.convert_tokens_to_ids(digit) for digit in str(scene.signs[0].number)}
        assert digits <= set(packed.targets[on_sign].tolist())


def test_labels_that_were_added_keep_the_rows_of_the_former_ones() -> None:
    drawn = {"linear.weight": torch.zeros(5, 2), "edges.weight": torch.zeros(4, 2)}
    former = {"linear.weight": torch.ones(3, 2), "edges.weight": torch.ones(4, 2)}
    assert grown(former, drawn)["linear.weight"][:, 0].tolist() == [1, 1, 1, 0, 0]
    assert grown(former, drawn)["edges.weight"].eq(1).all()


@pytest.mark.filterwarnings("ignore:.*is ignored:qwenvl_kit.errors.OptionWarning")  # the echo backend has no tokens
def test_every_sign_is_asked_for_once_a_language() -> None:
    scores = score(judge_signs(PLAIN[:3], {"backend": "echo"}))
    assert [(one.language, one.group, one.n_total) for one in scores] == [
        (language, group, 3) for language in ("zh", "en") for group in ("number", "caption beside a sign")
    ]

"""The drawn world: seeds, splits and what a scene may hold."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_kit.demo.scenes import LARGE_WORLD, SMALL_WORLD, Split, World, image_size, sample_scenes, split_of

WORLDS = [pytest.param(SMALL_WORLD, id="small"), pytest.param(LARGE_WORLD, id="large")]


def test_the_same_seed_gives_the_same_scenes() -> None:
    assert sample_scenes(12, seed=3) == sample_scenes(12, seed=3)
    assert sample_scenes(12, seed=3) != sample_scenes(12, seed=4)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_sampled_scenes_are_of_the_asked_split(world: World, split: Split) -> None:
    assert {split_of(scene) for scene in sample_scenes(60, world=world, split=split)} == {split}


@pytest.mark.parametrize("world", WORLDS)
def test_no_held_out_combination_is_ever_drawn_for_training(world: World) -> None:
    heldout, train = (
        {
            tuple(sorted(thing.kind for thing in scene.things))
            for scene in sample_scenes(600, world=world, split=split, seed=seed)
            if len(scene.things) > 1
        }
        for seed, split in enumerate[Split](("heldout", "train"))
    )
    assert not heldout & train


def test_the_split_of_several_objects_depends_on_neither_place_nor_size() -> None:
    rng = np.random.default_rng(0)
    scene = next(scene for scene in sample_scenes(9, seed=1) if len(scene.things) == 3)
    for _ in range(20):
        cells = rng.choice(9, size=3, replace=False).tolist()
        moved = [
            type(thing)(shape=thing.shape, colour=thing.colour, size=str(rng.choice(["large", "small"])), cell=cell)
            for thing, cell in zip(scene.things, cells, strict=True)
        ]
        assert split_of(type(scene)(background="black", things=tuple(moved))) == "heldout"


@pytest.mark.parametrize("world", WORLDS)
def test_scenes_stay_inside_their_world(world: World) -> None:
    for scene in sample_scenes(200, world=world):
        height, width = image_size(scene)
        assert min(height, width) >= 84
        assert max(height, width) <= 768
        assert max(height, width) / min(height, width) <= world.max_aspect * 1.01
        assert scene.background in world.backgrounds
        cells = [thing.cell for thing in scene.things]
        assert cells == sorted(set(cells))
        assert len(cells) <= world.max_objects
        for thing in scene.things:
            assert thing.shape in world.shapes
            assert thing.colour in world.colours
            assert thing.colour != scene.background


def test_object_counts_take_turns_unless_one_is_asked_for() -> None:
    assert [len(scene.things) for scene in sample_scenes(6)] == [1, 2, 3, 1, 2, 3]
    assert {len(scene.things) for scene in sample_scenes(6, n_things=2)} == {2}


def test_the_large_world_holds_every_name_of_the_small_one() -> None:
    assert set(SMALL_WORLD.shapes) < set(LARGE_WORLD.shapes)
    assert set(SMALL_WORLD.colours) < set(LARGE_WORLD.colours)

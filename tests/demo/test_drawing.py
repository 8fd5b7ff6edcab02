"""Pixels agree with the truth of the scene that they were drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qwenvl_kit.demo import scenes
from qwenvl_kit.demo.scenes import LARGE_WORLD, RGB, Scene, Thing, boxes, caption, draw, image_size, sample_scenes

SCENES = sample_scenes(24, seed=11, world=LARGE_WORLD)


def nearest_name(pixel: np.ndarray, names: tuple[str, ...]) -> str:
    return min(names, key=lambda name: float(np.abs(pixel.astype(float) - RGB[name]).sum()))


def filled_points(thing: Thing) -> tuple[float, float]:
    """Return a point, in the unit square of the object's box, that its shape covers."""
    return (0.5, 0.1) if thing.shape == "ring" else (0.5, 0.5)


@pytest.mark.parametrize("scene", SCENES, ids=range(len(SCENES)))
def test_objects_have_their_colour_where_the_truth_says(scene: Scene) -> None:
    pixels = draw(scene, long_side=252)
    for thing, (left, top, right, bottom) in zip(
        scene.things, boxes(scene, height=pixels.shape[0], width=pixels.shape[1]), strict=True
    ):
        x, y = filled_points(thing)
        pixel = pixels[int(top + y * (bottom - top)), int(left + x * (right - left))]
        assert nearest_name(pixel, LARGE_WORLD.colours) == thing.colour


@pytest.mark.parametrize("scene", SCENES, ids=range(len(SCENES)))
def test_pixels_outside_all_boxes_are_background(scene: Scene) -> None:
    pixels = draw(scene, long_side=252)
    outside = np.ones(pixels.shape[:2], dtype=bool)
    for left, top, right, bottom in boxes(scene, height=pixels.shape[0], width=pixels.shape[1]):
        outside[max(0, int(top) - 1) : int(bottom) + 3, max(0, int(left) - 1) : int(right) + 3] = False
    colours = np.unique(pixels[outside], axis=0)
    assert len(colours) == 1
    assert nearest_name(colours[0], LARGE_WORLD.backgrounds) == scene.background


@pytest.mark.parametrize("scene", SCENES[:8], ids=range(8))
def test_two_sizes_of_a_scene_show_the_same(scene: Scene) -> None:
    small, large = draw(scene, long_side=192), draw(scene, long_side=768)
    shrunk = np.asarray(Image.fromarray(large).resize(small.shape[1::-1], Image.Resampling.BOX))
    difference = np.abs(small.astype(float) - shrunk.astype(float))
    assert difference.mean() < 1.5
    assert caption(scene, "en") == caption(scene, "en")


def test_images_have_the_size_that_was_announced() -> None:
    for scene in SCENES:
        for long_side in (None, 168, 768):
            pixels = draw(scene, long_side=long_side)
            assert pixels.shape == (*image_size(scene, long_side=long_side), 3)
            assert pixels.dtype == np.uint8
            assert pixels.flags.writeable


def test_every_shape_looks_different() -> None:
    images = {
        shape: draw(Scene(background="white", things=(Thing(shape=shape, colour="blue", size="large", cell=4),)))
        for shape in LARGE_WORLD.shapes
    }
    names = list(images)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert np.abs(images[name].astype(int) - images[other].astype(int)).mean() > 0.5, (name, other)


def test_the_former_name_of_image_size_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="is now image_size"):
        assert scenes.picture_size is image_size

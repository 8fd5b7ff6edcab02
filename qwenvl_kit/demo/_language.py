"""Caption a scene in Chinese or English.

The image alone decides its caption: objects come in raster order, and the wording is fixed.
"""

from __future__ import annotations

from typing import Literal

from ._world import CELLS, Scene, Thing

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")

#: Prompts for a caption, the default first.
CAPTION_PROMPTS: dict[Language, tuple[str, ...]] = {
    "zh": (
        *(
            "请给出这张图片的详细描述。",
            "请给出图片的详细描述。",
            "请描述这张图片。",
            "描述这张图片。",
            "请详细描述这张图片。",
        ),
        *("描述一下这张图片。", "图中有什么？", "这张图片里有什么？"),
    ),
    "en": (
        *("Describe this image in detail.", "Describe this image.", "Describe the image.", "Describe this picture."),
        *("Describe the picture in detail.", "What is in this image?", "What do you see?"),
    ),
}

_WORDS = """
circle=圆形 square=方形 triangle=三角形 star=五角星 diamond=菱形 cross=十字形 ring=圆环 heart=心形
red=红色 green=绿色 blue=蓝色 yellow=黄色 orange=橙色 purple=紫色 pink=粉色 cyan=青色 brown=棕色
white=白色 black=黑色 gray=灰色 beige=米色 large=大的 small=小的
top-left=左上角 top-center=正上方 top-right=右上角 middle-left=左侧 center=正中间 middle-right=右侧
bottom-left=左下角 bottom-center=正下方 bottom-right=右下角
"""
_ZH = dict(pair.replace("-", " ").split("=") for pair in _WORDS.split())
_ZH_NUMBERS = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九")
_EN_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def caption(scene: Scene, language: Language = "zh") -> str:
    """Describe a scene in full: count and background, then each object, its place first.

    >>> from qwenvl_kit.demo.scenes import Scene, Thing
    >>> star = Thing(shape="star", colour="red", size="large", cell=4)
    >>> caption(Scene(background="white", things=(star,)), "en")
    'One object on a white background. Center: a large red star.'
    """
    return "".join(caption_parts(scene, language))


def caption_parts(scene: Scene, language: Language) -> list[str]:
    """Return the sentences of the caption: the head, then one per object. Joined, they are the caption."""
    n_things = len(scene.things)
    if language == "zh":
        head = f"{_ZH[scene.background]}背景上有{_ZH_NUMBERS[n_things]}个物体。"
        return [head, *(f"{_ZH[CELLS[thing.cell]]}：{thing_words(thing, 'zh')}。" for thing in scene.things)]
    noun = "object" if n_things == 1 else "objects"
    head = f"{_EN_NUMBERS[n_things].capitalize()} {noun} on {article(scene.background)} {scene.background} background."
    return [head, *(f" {CELLS[thing.cell].capitalize()}: {thing_words(thing, 'en')}." for thing in scene.things)]


def number(count: int, language: Language) -> str:
    """Return the word for a count; in Chinese the form before 个."""
    return (_ZH_NUMBERS if language == "zh" else _EN_NUMBERS)[count]


def word(name: str, language: Language) -> str:
    """Return the word for a shape, colour, size or place."""
    return _ZH[name] if language == "zh" else name


def kind_words(colour: str, shape: str, language: Language) -> str:
    """Return colour and shape as one phrase."""
    return f"{_ZH[colour]}{_ZH[shape]}" if language == "zh" else f"{colour} {shape}"


def thing_kind(thing: Thing, language: Language) -> str:
    """Return colour and shape of an object as one phrase."""
    return kind_words(*thing.kind, language)


def thing_words(thing: Thing, language: Language) -> str:
    """Return an object with its size and article."""
    if language == "zh":
        return f"一个{_ZH[thing.size]}{kind_words(thing.colour, thing.shape, 'zh')}"
    return f"a {thing.size} {kind_words(thing.colour, thing.shape, 'en')}"


def article(noun: str) -> str:
    """Return the English article."""
    return "an" if noun[0] in "aeiou" else "a"


def sentence(phrase: str, language: Language) -> str:
    """Return the phrase as a sentence, with a capital letter and a full stop."""
    return phrase[0].upper() + phrase[1:] + ("。" if language == "zh" else ".")


def words() -> dict[Language, list[str]]:
    """Return the names of all shapes, colours, sizes, places and numbers in each language."""
    return {"zh": [*_ZH.values(), *_ZH_NUMBERS], "en": [*_ZH, *_EN_NUMBERS]}

"""Choose a prompt of a weighted pool for each row, reproducibly and without regard to other rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qwenvl_kit.errors import ConfigError, RowError
from qwenvl_kit.images import classify
from qwenvl_kit.options.rules import is_number

if TYPE_CHECKING:
    from qwenvl_kit.options import ImageSrcType


def choose_prompts(
    pool: Mapping[str, float], cells: Sequence[object], seed: int | None = None, image_src_type: ImageSrcType = "auto"
) -> list[str]:
    """Return a prompt for each row, each with the probability of its share in the weights.

    The choice depends on the seed, the image's address or content, and how many rows before have the same image. It
    stays the same when other rows are added, left out or moved.

    Parameters
    ----------
    pool : mapping of str to float
        Weights of the prompts.
    cells : sequence
        The images.
    seed : int or None
        None is 0.
    image_src_type : str
        How to read texts and bytes among the cells.

    Raises
    ------
    ConfigError
        The pool is empty, a prompt is no text, or a weight is not a number above 0.

    Examples
    --------
    >>> choose_prompts({"Describe it.": 3, "List its tags.": 1}, ["a.png", "b.png", "c.png"], seed=7)
    ['Describe it.', 'List its tags.', 'Describe it.']
    """
    check_pool(pool)
    prompts, total = list(pool), sum(pool.values())
    seen: Counter[str] = Counter()
    chosen: list[str] = []
    for row, cell in enumerate(cells):
        name = _name(cell, row, image_src_type)
        chosen.append(prompts[_place([pool[prompt] / total for prompt in prompts], _share(seed, name, seen[name]))])
        seen[name] += 1
    return chosen


def check_pool(pool: Mapping[str, float]) -> None:
    """Raise ConfigError for a pool that is empty, or has a prompt that is no text or a weight that is not above 0."""
    if not pool:
        raise ConfigError("The pool of prompts is empty. Pass at least one, such as {'Describe it.': 1}.")
    for prompt, weight in pool.items():
        if not isinstance(prompt, str) or not prompt:
            raise ConfigError(f"The pool of prompts has {prompt!r} in place of a prompt. Pass texts and their weights.")
        if not is_number(weight) or weight <= 0:
            raise ConfigError(f"The weight of {prompt!r} is {weight!r}. Use a number above 0.")


def _name(cell: object, row: int, image_src_type: ImageSrcType) -> str:
    try:
        keys = [source.key for source in classify(cell, image_src_type)]
    except RowError:
        return f"row {row}"
    # A Pillow image is known by its place in memory only.
    return f"row {row}" if any(key.startswith("pil:") for key in keys) else "\n".join(keys)


def _share(seed: int | None, name: str, n_before: int) -> float:
    """Return a number in [0, 1)."""
    text = f"{seed or 0}\n{n_before}\n{name}".encode(errors="surrogatepass")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 11) / 2**53


def _place(shares: Sequence[float], at: float) -> int:
    reached = 0.0
    for place, share in enumerate(shares):
        reached += share
        if at < reached:
            return place
    return len(shares) - 1  # the sum of the shares may be less than one in the last bit

"""The options of a run that asks for objects, where the caller passed none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from qwenvl_kit.options import Config, Options

MAX_OBJECTS_LENGTH = 1024
"""Default of `max_caption_length` for objects, of which each takes about 30 tokens of the published vocabulary."""


def grounding_defaults(configs: Sequence[Config]) -> Options:
    """Return room for many objects, and log-probabilities for their scores where all these settings can have some.

    Raises
    ------
    ConfigError
        A setting hands addresses of images over, whose sizes are then unknown.

    Examples
    --------
    >>> from qwenvl_kit import Config
    >>> grounding_defaults([Config()]), grounding_defaults([Config(backend="echo", max_caption_length=8)])
    ({'max_caption_length': 1024, 'logprobs': 0}, {})
    """
    defaults: Options = {}
    if any(one.image_mode == "url" and one.backend == "openai" for one in configs):
        raise ConfigError(
            "image_mode='url' leaves the sizes of images unknown, without which coordinates have no place. Pass "
            "image_mode='data'."
        )
    if not any("max_caption_length" in one.explicit for one in configs):
        defaults["max_caption_length"] = MAX_OBJECTS_LENGTH
    if not any("logprobs" in one.explicit or one.num_beams > 1 or one.backend == "echo" for one in configs):
        defaults["logprobs"] = 0
    return defaults

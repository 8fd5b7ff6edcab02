"""Tokenize requests with a checkpoint's chat template, and cut images into patches.

Images arrive in the size that the model sees; they are only normalised here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from qwenvl_kit.errors import RowError, printable
from qwenvl_kit.inference.constraints import grammars_of
from qwenvl_kit.inference.patches import PatchCutter
from qwenvl_kit.inference.sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.inference.constraints import Grammars
    from qwenvl_kit.types import LoadedImage, Request

_SENTINEL = "\ue000"  # a private-use character in the place of a text while the template is filled


@dataclass(frozen=True, slots=True)
class Tokenization:
    """Conversion of requests to tokens and of tokens to text.

    Attributes
    ----------
    processor : InputProcessor
        Requests to tokens.
    decode : callable
        Token ids to text.
    eos_ids : tuple of int
        Tokens that end an answer.
    grammars : callable or None
        Return the grammars over the tokens; None where answers have no constraints.
    """

    processor: InputProcessor = field(repr=False)
    decode: Callable[[list[int]], str] = field(repr=False)
    eos_ids: tuple[int, ...]
    grammars: Callable[[], Grammars] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, processor: Any, checkpoint: Checkpoint, *, eos_ids: tuple[int, ...], vocab_size: int) -> Tokenization:
        """Return that of a checkpoint, given its processor and what `InputProcessor` needs."""
        tokenizer = processor.tokenizer

        def decode(ids: list[int]) -> str:
            text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return text

        inputs = InputProcessor(processor, checkpoint.context, vocab_size=vocab_size)
        return cls(inputs, decode, eos_ids, functools.partial(grammars_of, checkpoint))


class InputProcessor:
    """Tokenize requests and cut images into patches.

    Parameters
    ----------
    processor : transformers.Qwen2_5_VLProcessor
        The checkpoint's own.
    context : int
        Most tokens of prompt and answer together.
    vocab_size : int
        Rows of the model's embedding table.

    Attributes
    ----------
    image_id : int
        The id of a visual token.
    """

    def __init__(self, processor: Any, context: int, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.image_id: int = int(processor.image_token_id)
        self._processor, self._image_processor = processor, processor.image_processor
        self._tokenizer = processor.tokenizer
        self._cutter: PatchCutter | None = None  # made late: `check_checkpoint` names what is wrong with a config
        self._context = context
        self._control_tokens = tuple(str(token) for token in self._tokenizer.get_added_vocab())

    @property
    def merge(self) -> int:
        """Patches per side that become one visual token."""
        return int(self._image_processor.merge_size)

    def encode(self, request: Request) -> Sequence:
        """Return the sequence of a request.

        Raises
        ------
        RowError
            Of the stage ``generate``: prompt and answer exceed the model's context, or the tokenizer has a token that
            the model lacks.
        """
        patch = self._image_processor.patch_size
        sizes = [image.size for image in request.images]
        grid = torch.tensor([[1, height // patch, width // patch] for height, width in sizes])  # an image has one frame
        start_ids = self._start_ids(request.start_with)
        ids = self._with_visual_tokens(self._prompt_ids(len(sizes), request.prompt, request.system), grid) + start_ids
        self.check_context(len(ids), request.max_new_tokens)
        self._check_vocabulary(ids)
        sequence = Sequence(request, ids, grid, image_id=self.image_id, merge=self.merge)
        sequence.start_ids = start_ids
        sequence.label_ids = self._label_ids(request, len(ids))
        return sequence

    def count_text_tokens(self, n_images: int, prompt: str, system: str | None, start_with: str = "") -> int:
        """Return the tokens of a prompt, its template and the beginning of its answer, without visual ones.

        Raises
        ------
        RowError
            The tokenizer has a token that the model lacks, of the stage ``generate``.
        """
        ids = self._prompt_ids(n_images, prompt, system) + self._start_ids(start_with)
        self._check_vocabulary(ids)
        return len(ids) - n_images

    def patchify(self, image: LoadedImage, device: torch.device | None = None) -> Tensor:
        """Return the normalised patches of an image on a device, float32 (P, C·T·p·p); see `PatchCutter.cut`."""
        if self._cutter is None:
            self._cutter = PatchCutter(self._image_processor)
        return self._cutter.cut(image.pixels, device or torch.device("cpu"))

    def render(self, n_images: int, prompt: str, system: str | None, *, add_generation_prompt: bool = True) -> str:
        """Fill the chat template with images, a prompt and, unless it is None, a system prompt."""
        content = [{"type": "image"} for _ in range(n_images)] + [{"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        rendered: str = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return rendered

    def ids(self, text: str, *, literal: bool = False) -> list[int]:
        """Tokenize a text without a template; with `literal`, names of control tokens are plain text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"]
        return ids

    def _prompt_ids(self, n_images: int, prompt: str, system: str | None) -> list[int]:
        """Return token ids with one visual token for each image."""
        if not any(token in text for token in self._control_tokens for text in (prompt, system or "")):
            return self.ids(self.render(n_images, prompt, system))
        return self._literal_ids(n_images, prompt, system)

    def _start_ids(self, start_with: str) -> list[int]:
        """Return the tokens of the beginning of an answer, which stand where the model's own would."""
        return self.ids(start_with, literal=True) if start_with else []

    def _label_ids(self, request: Request, n_prompt: int) -> tuple[tuple[int, ...], ...]:
        """Return the tokens of each label, which must differ and fit the context."""
        found: dict[tuple[int, ...], str] = {}
        for label in request.labels:
            ids = tuple(self.ids(label, literal=True))
            if not ids or ids in found:
                other = f"the tokens of {printable(repr(found[ids]), 60)}" if ids else "no tokens"
                raise RowError("generate", f"The label {printable(repr(label), 60)} has {other}. Leave it out.")
            found[ids] = label
        if found:
            longest = max(found, key=len)
            if n_prompt + len(longest) >= self._context:
                raise RowError(
                    "generate",
                    f"The label {printable(repr(found[longest]), 60)} has {len(longest)} tokens and the prompt "
                    f"{n_prompt}; the model's context is {self._context} tokens. Shorten the label or the prompt, or "
                    "lower max_pixels.",
                )
            self._check_vocabulary([token for ids in found for token in ids])
        return tuple(found)

    def _literal_ids(self, n_images: int, prompt: str, system: str | None) -> list[int]:
        """Tokenize texts that contain names of control tokens apart from the template, so that they stay text."""
        rendered = self.render(n_images, _SENTINEL, None if system is None else _SENTINEL)
        parts = rendered.split(_SENTINEL)
        texts = [text for text in (system, prompt) if text is not None]
        ids = self.ids(parts[0])
        for text, part in zip(texts, parts[1:], strict=True):
            ids += self.ids(text, literal=True) + self.ids(part)
        return ids

    def _with_visual_tokens(self, ids: list[int], grid: Tensor) -> list[int]:
        """Repeat the visual token of each image as often as the image has visual tokens."""
        unit = self._image_processor.merge_size**2
        counts = iter((grid.prod(dim=1) // unit).tolist())
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * next(counts) if token == self.image_id else [token]
        assert next(counts, None) is None, "the template has a place for every image"
        return expanded

    def check_context(self, n_tokens: int, max_new_tokens: int) -> None:
        """Raise a RowError of the stage ``generate`` where a prompt and its answer exceed the model's context."""
        if n_tokens + max_new_tokens > self._context:
            raise RowError(
                "generate",
                f"The prompt has {n_tokens} tokens and the answer up to {max_new_tokens}; the model's context "
                f"is {self._context} tokens. Lower max_pixels or max_caption_length, or shorten the prompt.",
            )

    def _check_vocabulary(self, ids: list[int]) -> None:
        if (largest := max(ids)) >= self.vocab_size:
            raise RowError(
                "generate",
                f"Token {largest} of the prompt is not in the model's vocabulary of {self.vocab_size} tokens. The "
                "tokenizer has tokens that were added without resizing the embeddings. Leave them out of the prompt.",
            )

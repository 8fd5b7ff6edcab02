"""A `Request` in, token ids and picture patches out; then a batch of them as left-padded tensors.

Pictures arrive in the size that the model sees and are only cut and normalised here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.types import LoadedImage, Request

_SENTINEL = "\ue000"  # a private-use character that stands for a text while the template is filled


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A request as the model takes it.

    Attributes
    ----------
    ids : list of int
        The whole prompt, each visual token in its place.
    grid : int64 Tensor (n_pictures, 3)
        Frames, rows and columns of patches of each picture.
    patchify : callable
        Makes the patches of one picture, float (P, C·T·p·p): eight times the bytes of its pixels, so not before they
        are needed.
    """

    request: Request
    ids: list[int]
    grid: Tensor
    patchify: Callable[[LoadedImage], Tensor] = field(repr=False)

    @property
    def pixel_values(self) -> Tensor:
        """Patches of all its pictures, float (P, C·T·p·p), cut anew each time."""
        return torch.cat([self.patchify(picture) for picture in self.request.images])

    @property
    def image_keys(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """What names its pictures: equal for rows that see the same."""
        return tuple((picture.digest, picture.size) for picture in self.request.images)


class InputProcessor:
    """Turns requests into token ids with a checkpoint's own processor and chat template.

    Parameters
    ----------
    processor : transformers.Qwen2_5_VLProcessor
        The checkpoint's.
    context : int
        Most tokens of prompt and answer together.
    vocab_size : int
        Rows of the model's embedding table.
    """

    def __init__(self, processor: Any, context: int, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._context = context
        self._image_id: int = processor.image_token_id
        self._control_tokens = tuple(str(token) for token in self._tokenizer.get_added_vocab())

    def encode(self, request: Request) -> Encoded:
        """Encode one request.

        Raises
        ------
        RowError
            Prompt and answer do not fit the model's context, or the tokenizer has a token that the model lacks, of
            the stage ``generate``.
        """
        patch = self._processor.image_processor.patch_size
        grid = torch.tensor(
            [[1, height // patch, width // patch] for height, width in (picture.size for picture in request.images)]
        )  # (n_pictures, 3); a still picture has one frame
        ids = self._with_visual_tokens(self._prompt_ids(request), grid)
        self._check_context(len(ids), request)
        self._check_vocabulary(ids)
        return Encoded(request, ids, grid, self.patchify)

    def patchify(self, picture: LoadedImage) -> Tensor:
        """Normalised patches of a picture, float (P, C·T·p·p)."""
        image = torch.tensor(picture.pixels).permute(2, 0, 1)  # (3, H, W), copied
        # do_resize=False: the picture has its size already, and twice resized is not once resized.
        cut = self._processor.image_processor(
            images=[image], do_resize=False, input_data_format="channels_first", return_tensors="pt"
        )
        patches: Tensor = cut["pixel_values"]
        return patches

    def render(self, n_pictures: int, prompt: str, system: str | None, *, add_generation_prompt: bool = True) -> str:
        """Fill the chat template with pictures, a prompt and perhaps a system prompt."""
        content = [{"type": "image"} for _ in range(n_pictures)] + [{"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        rendered: str = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return rendered

    def ids(self, text: str, *, literal: bool = False) -> list[int]:
        """Tokenize a text as it stands; control tokens in a literal one are text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"]
        return ids

    def _prompt_ids(self, request: Request) -> list[int]:
        """Ids with one image token per picture."""
        texts = (request.prompt, request.system or "")
        if not any(token in text for token in self._control_tokens for text in texts):
            return self.ids(self.render(len(request.images), request.prompt, request.system))
        return self._literal_ids(request)

    def _literal_ids(self, request: Request) -> list[int]:
        """Ids of a prompt in which control tokens are spelt: they are text there, never control."""
        system = None if request.system is None else _SENTINEL
        parts = self.render(len(request.images), _SENTINEL, system).split(_SENTINEL)
        texts = [text for text in (request.system, request.prompt) if text is not None]
        ids = self.ids(parts[0])
        for text, part in zip(texts, parts[1:], strict=True):
            ids += self.ids(text, literal=True) + self.ids(part)
        return ids

    def _with_visual_tokens(self, ids: list[int], grid: Tensor) -> list[int]:
        """Put as many image tokens in the place of each as its picture has visual tokens."""
        merge = self._processor.image_processor.merge_size**2
        counts = iter((grid.prod(dim=1) // merge).tolist())
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * next(counts) if token == self._image_id else [token]
        assert next(counts, None) is None, "every picture has its place in the prompt"
        return expanded

    def _check_context(self, n_tokens: int, request: Request) -> None:
        if n_tokens + request.max_new_tokens > self._context:
            raise RowError(
                "generate",
                f"the prompt has {n_tokens} tokens and up to {request.max_new_tokens} may follow, more than the "
                f"model's {self._context}; lower max_pixels or max_caption_length, or shorten the prompt",
            )

    def _check_vocabulary(self, ids: list[int]) -> None:
        if (most := max(ids)) >= self.vocab_size:
            raise RowError(
                "generate",
                f"token {most} of the prompt is beyond the {self.vocab_size} tokens of the model; the tokenizer holds "
                "tokens that were added without resizing the model's embeddings; leave them out of the prompt",
            )


def collate(batch: Sequence[Encoded], *, pad_id: int, image_id: int) -> dict[str, Tensor]:
    """Join encoded requests into one batch, padded on the left, where decoder-only models need it.

    Returns
    -------
    dict of Tensor
        ``input_ids``, ``attention_mask`` and ``mm_token_type_ids`` of shape (B, T); ``pixel_values`` and
        ``image_grid_thw`` of all pictures, one after the other.
    """
    longest = max(len(encoded.ids) for encoded in batch)
    ids = torch.full((len(batch), longest), pad_id)  # (B, T)
    mask = torch.zeros_like(ids)
    for row, encoded in enumerate(batch):
        ids[row, longest - len(encoded.ids) :] = torch.tensor(encoded.ids)
        mask[row, longest - len(encoded.ids) :] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": ((ids == image_id) & (mask == 1)).long(),
        "pixel_values": torch.cat([encoded.pixel_values for encoded in batch]),  # (P, C·T·p·p)
        "image_grid_thw": torch.cat([encoded.grid for encoded in batch]),  # (n_pictures, 3)
    }

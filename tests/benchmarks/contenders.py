"""Build the benchmark model, and run it with this kit, the model card's loop and transformers' pipeline.

``python tests/benchmarks/contenders.py DIR`` writes the model to a folder, for an ONNX export of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.checkpoints import make_published  # of the tests' own tools

from qwenvl_kit import Config
from qwenvl_kit.demo.training.tokenizer import build_tokenizer
from qwenvl_kit.executors.local import run_spec
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.types import LoadedImage, Request

MODEL = "94.5 M parameters: text 768 wide, 12 layers, 12/4 heads, FFN 2048; vision 384 wide, 8 layers; 978 tokens, tied"


@dataclass(frozen=True)
class Rows:
    """An image, a prompt and a token limit per row."""

    images: list[Image.Image]
    prompts: list[str]
    n_most: list[int]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.images[part], self.prompts[part], self.n_most[part])


def make_model(folder: Path) -> Path:
    """Write the random checkpoint of all benchmarks, with a fixed seed."""
    return make_published(
        folder,
        vocab_size=len(build_tokenizer()),
        hidden=768,
        layers=12,
        tied=True,
        max_pixels=448 * 448,
        text={
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "intermediate_size": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        },
        vision={
            "hidden_size": 384,
            "depth": 8,
            "intermediate_size": 1024,
            "num_heads": 6,
            "out_hidden_size": 768,
            "fullatt_block_indexes": [3, 7],
        },
    )


def make_images(n: int, side: int = 448) -> list[Image.Image]:
    """Distinct images: patches of colour, which random weights tell apart."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC) for pixels in small]


class Ours:
    """This kit, on a loaded backend."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.config = Config(
            backend=backend,
            model_name=str(folder),
            dtype="float32",
            use_flash_attention_2=False,
            progress=False,
        )
        self.backend: Any = make_spec(self.config).load()

    def answer(self, rows: Rows, batch_size: int) -> list[str]:
        """Run the pipeline like a data frame does, or the backend itself for rows with limits of their own."""
        if len(set(rows.n_most)) > 1:
            return self._each_to_its_limit(rows, batch_size)
        config = replace(self.config, batch_size=batch_size, max_caption_length=rows.n_most[0])
        spec = make_spec(config)
        done = run_spec(rows.images, rows.prompts, config, spec, lambda _: nullcontext(self.backend))
        assert all(result.status == "ok" for result in done.results), done.results
        return [str(result.text) for result in done.results]

    def _each_to_its_limit(self, rows: Rows, batch_size: int) -> list[str]:
        resolved = replace(make_spec(self.config).resolved, batch_size=batch_size, rows_in_flight=batch_size)
        queue = _Queue(list(_requests(rows)))
        texts = {result.row: str(result.text) for result in self.backend.generate(queue, resolved, RunControl())}
        return [texts[row] for row in range(len(rows))]


class Card:
    """The model card's batched loop, rows in the order in which they come."""

    def __init__(self, folder: Path) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True, padding_side="left")

    def answer(self, rows: Rows, batch_size: int) -> list[str]:
        """Run one batch at a time to its longest limit, and cut each row at its own."""
        answers: list[str] = []
        for start in range(0, len(rows), batch_size):
            answers += self._batch(rows[start : start + batch_size])
        return answers

    def _batch(self, rows: Rows) -> list[str]:
        messages = [_message(*row) for row in zip(rows.images, rows.prompts, strict=True)]
        texts = [
            self.processor.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in messages
        ]
        images, _ = process_vision_info(messages)
        inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        ids = self.model.generate(**inputs, max_new_tokens=max(rows.n_most), do_sample=False)
        new = [one[:most] for one, most in zip(ids[:, inputs.input_ids.shape[1] :], rows.n_most, strict=True)]
        said: list[str] = self.processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return said


class Pipeline:
    """transformers' ``pipeline("image-text-to-text")`` with a batch size; one limit for all rows is all it takes."""

    def __init__(self, card: Card) -> None:
        self._pipe = pipeline("image-text-to-text", model=card.model, processor=card.processor)

    def answer(self, rows: Rows, batch_size: int) -> list[str]:
        messages = [_message(*row)[0] for row in zip(rows.images, rows.prompts, strict=True)]
        said = self._pipe(
            text=[[one] for one in messages],
            batch_size=batch_size,
            return_full_text=False,
            generate_kwargs={"max_new_tokens": max(rows.n_most), "do_sample": False},
        )
        return [one[0]["generated_text"] if isinstance(one, list) else one["generated_text"] for one in said]


class _Queue:
    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        taken, self._requests = self._requests[:n], self._requests[n:]
        return taken or None


def _requests(rows: Rows) -> Iterator[Request]:
    for row, (image, prompt, most) in enumerate(zip(rows.images, rows.prompts, rows.n_most, strict=True)):
        pixels = np.asarray(image)
        shown = LoadedImage(pixels, str(id(image)), image.size[::-1])
        yield Request(row, (shown,), prompt, None, None, most)


def _message(image: Image.Image, prompt: str) -> list[dict[str, Any]]:
    image = {"type": "image", "image": image, "min_pixels": 3136, "max_pixels": 448 * 448}
    return [{"role": "user", "content": [image, {"type": "text", "text": prompt}]}]


if __name__ == "__main__":
    print(make_model(Path(sys.argv[1])))

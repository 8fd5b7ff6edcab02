"""Write docs/options.md from the options themselves: ``python docs/generate_options.py``."""

from __future__ import annotations

from pathlib import Path

from qwenvl_kit.options import OptionDoc, option_docs

PAGE = Path(__file__).with_name("options.md")
HEAD = """# Options

Every call takes these as keywords, and so does `qwenvl_kit.Config`. A misspelt name raises an error with the nearest
option. The Qwen2.5-VL image-understanding operator has fifteen of them under the same names and defaults:
`image_src_type` (`"image_url"` there), `model_path`, `model_name`, `prompt`, `batch_size`, `dtype`,
`use_flash_attention_2`, `max_caption_length`, `resized_height`, `resized_width`, `do_sample`, `temperature`, `top_k`,
`top_p` and `rank`.
"""
TITLES = {
    "ModelOptions": "Model",
    "SamplingOptions": "Sampling",
    "ImageOptions": "Images",
    "FetchOptions": "Fetching",
    "RunOptions": "Run",
}
COLUMNS = "| option | type | default | meaning |\n|---|---|---|---|\n"


def row(option: OptionDoc) -> str:
    """Return the table row of an option."""
    return f"| `{option.name}` | {option.kind} | `{option.default!r}` | {option.doc} |\n"


def page() -> str:
    """Return the whole page, one table per group."""
    options = option_docs()
    groups = list(dict.fromkeys(option.group for option in options))
    tables = ("".join(map(row, (option for option in options if option.group == group))) for group in groups)
    return HEAD + "".join(
        f"\n## {TITLES[group]}\n\n{COLUMNS}{table}" for group, table in zip(groups, tables, strict=True)
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

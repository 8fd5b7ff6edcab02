"""Write a request as the body of a chat completion."""

from __future__ import annotations

import base64
import io
import json
import secrets
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from qwenvl_kit.types import Constraint, LoadedImage, Request

_JPEG = {"quality": 95, "subsampling": 0}
_PNG = {"compress_level": 1}  # 4 times as fast as the default, files a tenth larger
_PLACE = secrets.token_hex(16)  # no prompt can hold it


def body_of(
    model: str,
    parameters: Mapping[str, Any],
    prompt: str,
    system: str | None = None,
    images: Sequence[LoadedImage] = (),
    constraint: Constraint | None = None,
    *,
    encoding: str = "png",
) -> list[bytes]:
    """Return the body in pieces: JSON around images, which are neither copied nor scanned once more.

    Parameters
    ----------
    model : str
        As the server names it.
    parameters : mapping
        See `qwenvl_kit.openai_backend.parameters`.
    prompt, system : str
        Texts; without `system`, the chat template adds the checkpoint's own.
    images : sequence of LoadedImage
        In order, before the text.
    constraint : Constraint, optional
        What the answer matches.
    encoding : {"png", "jpeg"}
        Of the images that have pixels.

    Examples
    --------
    >>> b"".join(body_of("m", {"max_tokens": 1}, "What?"))
    b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}]}], "max_tokens": 1}'
    """
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _url(one)}} for one in images]
    content.append({"type": "text", "text": prompt})
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": content})
    fields = {"model": model, "messages": messages, **parameters, **constraint_fields(constraint)}
    around = json.dumps(fields, ensure_ascii=False).encode().split(_PLACE.encode())
    pieces = [around[0]]
    for image, text in zip((one for one in images if one.address is None), around[1:], strict=True):
        pieces += [*data_url(image.pixels, encoding), text]
    return pieces


def request_body(model: str, parameters: Mapping[str, Any], request: Request, encoding: str) -> list[bytes]:
    """Return the body of a row's request; see `body_of`."""
    return body_of(
        model, parameters, request.prompt, request.system, request.images, request.constraint, encoding=encoding
    )


def data_url(pixels: NDArray[Any], encoding: str) -> tuple[bytes, bytes]:
    """Return pixels as a data URL in two pieces: its head and the base64 of a file.

    Parameters
    ----------
    pixels : uint8 array (H, W, 3)
        RGB.
    encoding : {"png", "jpeg"}
        Lossless, or JPEG of quality 95 without chroma subsampling.
    """
    file = io.BytesIO()
    settings: dict[str, Any] = _JPEG if encoding == "jpeg" else _PNG
    Image.fromarray(pixels).save(file, encoding, **settings)
    return f"data:image/{encoding};base64,".encode(), base64.b64encode(file.getbuffer())


def constraint_fields(constraint: Constraint | None) -> dict[str, Any]:
    """Return the fields that ask for a constrained answer: OpenAI's for a schema, engines' own for other forms.

    vLLM reads ``structured_outputs``, and before 0.12 ``guided_regex`` and ``guided_choice``. SGLang reads ``regex``.
    https://docs.vllm.ai/en/latest/features/structured_outputs/
    https://docs.sglang.ai/advanced_features/structured_outputs.html
    """
    if constraint is None:
        return {}
    if constraint.kind == "json":
        schema = {"name": "answer", "schema": json.loads(constraint.source), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if constraint.kind == "regex":
        pattern = constraint.source
        return {"structured_outputs": {"regex": pattern}, "guided_regex": pattern, "regex": pattern}
    choices = json.loads(constraint.source)
    pattern = "|".join(map(_escaped, choices))
    return {"structured_outputs": {"choice": choices}, "guided_choice": choices, "regex": f"({pattern})"}


def _url(image: LoadedImage) -> str:
    return _PLACE if image.address is None else image.address


def _escaped(text: str) -> str:
    """Escape what regular expressions of any dialect read as more than itself."""
    return "".join(f"\\{one}" if one in r"\.+*?()|[]{}^$" else one for one in text)

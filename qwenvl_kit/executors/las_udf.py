"""Run an operator as a function of Daft expressions, on one machine or on Ray.

Daft decides where a worker runs and which rows it gets. The operator batches them for the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.executors.daft_setup import check_gpus, import_daft

if TYPE_CHECKING:
    import daft

    from qwenvl_kit.types import Result

Returns = Literal["text", "struct"]
_FIELDS = ("text", "status", "error", "finish_reason", "prompt_tokens", "new_tokens")


def las_udf(
    operator: Callable[..., Any],
    construct_args: Mapping[str, Any] | None = None,
    *,
    num_gpus: float | None = None,
    batch_size: int | None = None,
    concurrency: int | None = None,
    returns: Returns = "text",
) -> Callable[..., daft.Expression]:
    """Return a Daft function that calls an operator.

    Parameters
    ----------
    operator : type
        `QwenVLImageUnderstanding`, or another class of that form.
    construct_args : mapping, optional
        Its keyword arguments; each worker constructs one.
    num_gpus : float, optional
        GPUs of each worker; 0 or None for none.
    batch_size : int, optional
        Rows per call. The operator splits them by its own ``batch_size``: four or more times as many keep the model
        busy.
    concurrency : int, optional
        Workers.
    returns : {"text", "struct"}
        A text per row; or a struct of ``text, status, error, finish_reason, prompt_tokens, new_tokens``.

    Returns
    -------
    callable
        Takes a column of images and, optionally, one of prompts.

    Raises
    ------
    MissingExtra
        Daft is not installed.
    ConfigError
        `num_gpus` exceeds the GPUs that there are, or `returns` is neither of its values.

    Examples
    --------
    >>> from qwenvl_kit.daft import QwenVLImageUnderstanding, las_udf
    >>> understand = las_udf(QwenVLImageUnderstanding, {"model_name": "demo"})  # doctest: +SKIP
    >>> frame = frame.with_column("caption", understand(frame["image"]))  # doctest: +SKIP
    """
    api = import_daft()
    if returns not in ("text", "struct"):
        raise ConfigError(f"returns={returns!r} is unknown. Pass 'text', or 'struct' for every field.")
    given = dict(construct_args or {})
    check_gpus(api, num_gpus, concurrency)
    _check_rank(api, given)
    as_struct = returns == "struct"

    class Worker:
        def __init__(self) -> None:
            self._operator = operator(**given)

        def understand(self, images: Any, prompts: Any = None) -> list[Any]:
            answers = self._operator.results(images, prompts)
            # Daft would silently repeat a single value for the whole batch.
            assert len(answers) == len(images), "one answer per row"
            return [_struct(one) if as_struct else one.text if one.status == "ok" else None for one in answers]

    # With on_error="ignore" Daft would null whole batches, also where the model cannot be loaded.
    method = api.method.batch(return_dtype=_dtype(api, as_struct=as_struct), batch_size=batch_size, on_error="raise")
    Worker.understand = method(Worker.understand)  # type: ignore[method-assign]
    worker = api.cls(Worker, gpus=num_gpus or 0, max_concurrency=concurrency, name_override=operator.__name__)()

    def apply(images: daft.Expression, prompts: daft.Expression | None = None) -> daft.Expression:
        return worker.understand(images) if prompts is None else worker.understand(images, prompts)

    return apply


def _struct(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in _FIELDS}


def _dtype(daft: Any, *, as_struct: bool) -> Any:
    text, number = daft.DataType.string(), daft.DataType.int64()
    if not as_struct:
        return text
    return daft.DataType.struct({name: number if name.endswith("_tokens") else text for name in _FIELDS})


def _check_rank(daft: Any, given: Mapping[str, Any]) -> None:
    if given.get("rank") and daft.get_or_infer_runner_type() == "ray":
        raise ConfigError(
            f"rank={given['rank']} exceeds the GPUs of a worker on Ray, which sees only its own. Pass rank=0 or "
            "rank=None."
        )

"""Judge an engine: does it run the embedded model as it should, and where does it not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

if TYPE_CHECKING:
    import pandas as pd

    from qwenvl_kit.options import Options

__all__ = ["conform"]


def conform(
    images: Sequence[object] | None = None,
    *,
    against: Mapping[str, object] | None = None,
    tolerance: float | None = None,
    scene_seed: int = 0,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Ask an engine that has loaded the embedded model, and say layer by layer whether it runs it as it should.

    The questions are about drawn scenes that the model was not trained on. The right answers, with log-probabilities,
    are those of ``backend="torch"`` in float32, made at each call. Where answers differ, faults are planted in that
    model one after another, and the fault that explains the answers is named.

    With `against`, two engines or two settings of any checkpoint are compared instead, image by image.

    Parameters
    ----------
    images : sequence, optional
        With `against`: images, as in a column; drawn scenes by default.
    against : mapping, optional
        Options of the other engine, such as ``{"dtype": "float32"}``; the rest is as in `options`.
    tolerance : float, optional
        Largest difference of log-probabilities, in nats; 0.001 by default, and 0.5 for a 16-bit dtype. For a server
        that runs in 16 bits or with other kernels pass 0.5.
    scene_seed : int
        Other scenes.
    **options
        The engine: `backend`, `model_name`, `base_url` and other options of the model. A server serves the folder that
        ``qwenvl-kit demo --export-checkpoint DIR`` writes. `model_name` is ``demo`` by default on torch.

    Returns
    -------
    DataFrame
        A row per layer: `layer`; `verdict`, which is ``pass``, ``fail``, ``unclear`` (another layer's fault hides it)
        or ``not tried``; answers that were compared (`cases`) and that differ (`differ`); the largest difference of
        log-probabilities in nats; and `detail`. ``attrs["passed"]`` is whether no layer fails, ``attrs["conform"]`` the
        record. With `against`: a row per image, see `qwenvl_kit.conformance.pairs.compare_engines`.

    Raises
    ------
    ConfigError
        An option is set that a run of its own needs, or no model is named.
    ServerError, ModelNotFound
        The engine cannot be used.

    Examples
    --------
    >>> import qwenvl_kit
    >>> found = qwenvl_kit.conform(backend="torch", dtype="float32")  # doctest: +SKIP
    >>> found.attrs["passed"]  # doctest: +SKIP
    True
    """
    if against is None:
        from qwenvl_kit.conformance.run import judge_engine

        return judge_engine(images, dict(options), tolerance=tolerance, scene_seed=scene_seed)
    from qwenvl_kit.conformance.pairs import compare_engines

    return compare_engines(images, dict(options), against, scene_seed=scene_seed)

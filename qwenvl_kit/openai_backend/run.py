"""Ask for the rows of one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qwenvl_kit.images import Sizing
from qwenvl_kit.openai_backend.asker import Asker
from qwenvl_kit.openai_backend.client import Clients
from qwenvl_kit.openai_backend.in_flight import InFlight
from qwenvl_kit.openai_backend.retry import Patience
from qwenvl_kit.openai_backend.workers import Piece, Workers
from qwenvl_kit.options import ImageOptions

if TYPE_CHECKING:
    from collections.abc import Collection

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import RequestQueue, RunControl
    from qwenvl_kit.openai_backend.server import Server
    from qwenvl_kit.types import PatchGeometry, Result


def generate(
    server: Server,
    geometry: PatchGeometry,
    refused: Collection[str],
    queue: RequestQueue,
    resolved: ResolvedConfig,
    control: RunControl,
) -> Iterator[Result]:
    """Yield a result for each request of the queue, in the order of their ends.

    Parameters
    ----------
    server : Server
        The server.
    geometry : PatchGeometry
        How the model's processor sizes images.
    refused : collection of str
        Parameters that it refuses.
    queue, resolved, control
        As for every `Backend`.
    """
    in_flight = InFlight(resolved.rows_in_flight)
    asker = Asker(server, resolved.model, resolved, Patience(server), control.cancel, refused=refused)
    workers = Workers(queue, asker.ask, Clients(server).open, in_flight, server.timeout_s)
    if control.on_token is not None:
        asker.on_piece = lambda row, text: workers.events.put(Piece(row, text))
    n_without, resized = 0, _Resized(geometry)
    for result in workers.results(control.cancel, control.on_token):
        resized.count(result)
        n_without += result.status == "ok" and resolved.logprobs is not None and result.token_logprobs is None
        yield result
    if n_without:
        control.note(f"{server.base_url} sent no log-probabilities of {n_without} answers.")
    if resized.n_rows:
        control.note(
            f"The model's processor resizes the images of {resized.n_rows} rows once more, because their area is "
            f"outside of its limits of {geometry.min_pixels} to {geometry.max_pixels} pixels."
        )
    if resolved.rows_in_flight == "auto":
        control.note(f"rows_in_flight='auto' grew to {in_flight.limit} requests.")


class _Resized:
    """Count rows whose first image a processor would resize again: rounding can take an area out of its limits."""

    def __init__(self, geometry: PatchGeometry) -> None:
        self._sizing = Sizing.of(ImageOptions(), geometry)
        self.n_rows = 0

    def count(self, result: Result) -> None:
        if result.height is not None and result.width is not None:
            size = result.height, result.width
            self.n_rows += self._sizing.target(size) != size

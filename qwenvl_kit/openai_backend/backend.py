"""The backend of servers: any engine that speaks OpenAI's chat completions, at a URL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwenvl_kit.checkpoints.capabilities import Capabilities, Device, FixedOption, check_fixed
from qwenvl_kit.checkpoints.checkpoint import find_configs
from qwenvl_kit.checkpoints.resolve import CheckpointDefaults, ResolvedConfig, resolve
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.openai_backend.agreement import agree
from qwenvl_kit.openai_backend.discovery import find_model
from qwenvl_kit.openai_backend.parameters import check_extra_body
from qwenvl_kit.openai_backend.server import Server
from qwenvl_kit.types import PatchGeometry, Result

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import RequestQueue, RunControl
    from qwenvl_kit.options import Config

_ROWS_IN_FLIGHT = 16
_LOADING: dict[str, object] = {
    "adapter": None,
    "dtype": "server",
    "torch_compile": False,
    "threads": None,
    "rank": None,
    "device_map": None,
    "max_memory": None,
}
_PIXELS: dict[str, object] = {
    "resized_height": None,
    "resized_width": None,
    "min_pixels": None,
    "max_pixels": None,
    "image_decode": "exact",
    "image_encoding": "png",
}


@dataclass(frozen=True, slots=True)
class OpenAISpec:
    """A model of a server, and how it will be asked. It holds no key.

    Attributes
    ----------
    server : Server
        Where it is served.
    resolved : ResolvedConfig
        The options as they run.
    geometry : PatchGeometry
        Of a local folder of the model, else that of the published checkpoints.
    refused : frozenset of str
        Parameters that the server refuses.
    """

    server: Server
    resolved: ResolvedConfig
    geometry: PatchGeometry
    refused: frozenset[str] = frozenset()

    @property
    def fingerprint(self) -> str:
        """Digest of the model's name, root and revision as the server tells them."""
        return self.resolved.fingerprint

    @property
    def identity(self) -> str:
        """Equal for configs that ask one server for one model."""
        return f"openai:{self.server}:{self.geometry}:{sorted(self.refused)}"

    @property
    def checkpoint(self) -> None:
        """None: the model is elsewhere."""

    def load(self, control: RunControl | None = None) -> OpenAIBackend:
        """Return the backend."""
        return OpenAIBackend(self)


class OpenAIBackend:
    """Ask a server.

    Parameters
    ----------
    spec : OpenAISpec
        The server, its model and the parameters that it refuses.
    """

    def __init__(self, spec: OpenAISpec) -> None:
        self._spec = spec

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: RunControl) -> Iterator[Result]:
        """Answer what the queue gives."""
        from qwenvl_kit.openai_backend.run import generate

        spec = self._spec
        yield from generate(spec.server, spec.geometry, spec.refused, queue, resolved, control)

    def close(self) -> None:
        """Do nothing: each run closes its connections."""


def spec(config: Config) -> OpenAISpec:
    """Find a config's model on its server, and agree on parameters.

    Raises
    ------
    ConfigError
        ``base_url`` is missing, the key is, or an option is not supported.
    ServerError
        The server cannot be used.
    ModelNotFound
        It has no model of this name.
    """
    server = _server(config)
    check_extra_body(config.extra_body)
    capabilities = capabilities_of(config)
    check_fixed(config, capabilities)  # before anything is sent
    configs = find_configs(config.model)
    model = find_model(server, config.model_name)
    defaults = CheckpointDefaults(model.name, model.fingerprint, PatchGeometry(), repetition_penalty=None)
    if configs is not None:
        defaults = replace(defaults, geometry=configs.geometry, repetition_penalty=configs.repetition_penalty)
    planned = resolve(config, Device("server"), defaults, capabilities)
    planned = replace(
        planned,
        base_url=server.base_url,
        image_encoding=config.image_encoding if config.image_mode == "data" else None,
        image_mode=config.image_mode,
        extra_body=None if config.extra_body is None else dict(config.extra_body),
    )
    resolved, refused = agree(server, model.name, planned)
    return OpenAISpec(server, resolved, defaults.geometry, refused)


def _server(config: Config) -> Server:
    if config.base_url is None:
        raise ConfigError(
            "backend='openai' needs a server. Pass base_url=, such as base_url='http://localhost:8000/v1'."
        )
    server = Server(config.base_url.rstrip("/"), config.api_key_env, config.request_timeout_s)
    if "api_key_env" in config.explicit and not os.environ.get(config.api_key_env):
        raise ConfigError(
            f"The environment variable {config.api_key_env} of api_key_env is not set. Set it to the server's key, or "
            "leave api_key_env out for a server that needs none."
        )
    server.headers()  # raises for a key that no header can hold
    return server


def capabilities_of(config: Config) -> Capabilities:
    """Return what the protocol can do; options of loading a model are the server's."""
    beams = FixedOption(
        option="num_beams",
        value=1,
        reason="backend='openai' does not support beam search, which the protocol lacks",
        instead="using greedy search",
        remedy="Use num_beams=1 or backend='torch'.",
    )
    begun = FixedOption(
        option="start_with",
        value=None,
        reason="backend='openai' does not support answers that begin with a given text, which the protocol lacks",
        instead="generating whole answers",
        remedy="Leave start_with out, or use backend='torch' or 'onnx'.",
    )
    fixed = [
        beams,
        begun,
        *_fixed(_LOADING, "backend='openai' loads no model, and the server was started with its own"),
    ]
    if config.image_mode == "url":
        fixed += _fixed(_PIXELS, "image_mode='url' leaves images to the server")
    return Capabilities(fixed=tuple(fixed), attention="server", rows_in_flight=_ROWS_IN_FLIGHT, is_server=True)


def _fixed(values: Mapping[str, object], reason: str) -> list[FixedOption]:
    return [
        FixedOption(option=name, value=value, reason=reason, instead="using the server's")
        for name, value in values.items()
    ]

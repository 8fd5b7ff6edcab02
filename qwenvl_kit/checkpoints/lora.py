"""Read a LoRA adapter in the layout of the peft package, and fold it into the weights of its base model.

A folded matrix is ``W + scale * B @ A``, in float32: https://arxiv.org/abs/2106.09685. peft itself is not needed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.digest import digest_files, folder_state
from qwenvl_kit.checkpoints.locate import locate_adapter
from qwenvl_kit.checkpoints.weight_files import (
    TensorHeader,
    read_headers,
    refuse_lfs_pointer,
    uniform_name,
    weight_files,
)
from qwenvl_kit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.options import Config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Fields of adapter_config.json whose weights mean something else than W + scale * B @ A, where they are set.
_UNSUPPORTED = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "arrow_config", "megatron_config"),
)
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base model's weights too
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.weight)?")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors of a change to one weight.

    Attributes
    ----------
    down, up : str
        Names of A (r, K) and B (N, r) in the adapter's file.
    scale : float
        Of their product.
    is_embedding : bool
        The product is the transpose of the weight's change.
    """

    down: str
    up: str
    scale: float
    is_embedding: bool = False


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter, before its numbers are read.

    Attributes
    ----------
    path : Path
        Its folder.
    headers : mapping of str to TensorHeader
        Tensors of its file.
    pairs : mapping of str to LoraPair
        Changes, by the uniform name of the weight.
    replaced : mapping of str to str
        Names of tensors that take a weight's place (``modules_to_save``), by the uniform name of the weight.
    """

    path: Path
    headers: Mapping[str, TensorHeader]
    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Digest of the adapter's files."""
        return digest_files(self.path, folder_state(self.path))

    @property
    def names(self) -> frozenset[str]:
        """Uniform names of the weights that it changes."""
        return frozenset((*self.pairs, *self.replaced))

    def __str__(self) -> str:
        more = f", {len(self.replaced)} weights replaced" if self.replaced else ""
        return f"The LoRA adapter {self.path} is folded into {len(self.pairs)} weights{more}."


def find_lora(checkpoint: Checkpoint, config: Config) -> Lora | None:
    """Return the adapter of a config, whose tensors fit the checkpoint; None where none is asked for.

    Raises
    ------
    ConfigError
        The weights are quantised, or placed by a device map, so nothing can be folded into them as they are read.
    ModelNotFound, CheckpointError
        There is no such adapter, it is of another kind, or of another model.
    """
    folder = locate_adapter(config.model)
    if folder is None:
        return None
    quantization = checkpoint.config.get("quantization_config")
    if config.device_map is not None or quantization is not None:
        what = "quantised weights" if quantization is not None else f"device_map={config.device_map!r}"
        raise ConfigError(
            f"adapter={config.adapter!r} does not support {what}. Leave it out, or merge with peft first."
        )
    lora = read_lora(folder)
    check_base(lora, read_headers(weight_files(checkpoint.path, checkpoint.config)))
    return lora


def read_lora(folder: Path) -> Lora:
    """Read an adapter's config and the header of its weights.

    Raises
    ------
    CheckpointError
        A file is missing or broken, or the adapter is of another kind than LoRA, such as DoRA.
    """
    config = _config(folder)
    _check_kind(folder, config)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}. Save the adapter with save_pretrained(…, safe_serialization=True)."
        )
    headers = read_headers([folder / WEIGHTS])
    found: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in headers:
        plain = name.removeprefix(_PREFIX)
        if pair := _PAIR.fullmatch(plain):
            found.setdefault(pair["module"], {})[f"{pair['embedding'] or ''}{pair['part']}"] = name
        elif "lora_" in plain:
            raise CheckpointError(f"{folder}: {name} is no part of plain LoRA. Merge the adapter with peft instead.")
        else:
            replaced[uniform_name(plain)] = name
    pairs = {
        uniform_name(f"{module}.weight"): _pair(folder, config, module, parts, headers)
        for module, parts in found.items()
    }
    if not pairs and not replaced:
        raise CheckpointError(f"{folder / WEIGHTS} holds no tensors. Save the adapter again.")
    return Lora(folder, headers, pairs, replaced)


def check_base(lora: Lora, base: Mapping[str, TensorHeader]) -> None:
    """Check that each tensor of an adapter has its weight in a checkpoint, in a fitting shape.

    Raises
    ------
    CheckpointError
        It is the adapter of another model.
    """
    shapes = {uniform_name(name): header.shape for name, header in base.items()}
    for name in sorted(lora.names):
        wanted = _shape(lora, name)
        if shapes.get(name) != wanted:
            has = "has no such weight" if name not in shapes else f"has it in the shape {shapes[name]}"
            raise CheckpointError(
                f"The adapter {lora.path} changes {name} of shape {wanted}, and the model {has}. Pass the adapter's "
                "own base model as model_name."
            )


class FoldedWeights:
    """The numbers of an adapter, to be folded into weights one by one.

    Parameters
    ----------
    lora : Lora
        The adapter.
    """

    def __init__(self, lora: Lora) -> None:
        from safetensors import safe_open

        self._lora = lora
        self._file = safe_open(lora.path / WEIGHTS, framework="pt")

    def changes(self, name: str) -> bool:
        """Return whether the weight of this name, of any layout, is changed."""
        return uniform_name(name) in self._lora.names

    def fold(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight with its change, in float32; any other as it is."""
        plain = uniform_name(name)
        if plain in self._lora.replaced:
            return self._get(self._lora.replaced[plain])
        pair = self._lora.pairs.get(plain)
        if pair is None:
            return weight
        change = self._get(pair.up) @ self._get(pair.down)  # (N, K)
        return weight.float() + pair.scale * (change.T if pair.is_embedding else change)

    def _get(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name).float()  # type: ignore[no-untyped-call]
        return tensor


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        refuse_lfs_pointer(file)
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no LoRA adapter: {CONFIG} is missing. Pass the folder that peft's save_pretrained wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Save the adapter again.") from error
    return content


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for an adapter whose weights are no plain LoRA."""
    merge = "Merge it with peft (merge_and_unload), save that with save_pretrained, and pass it as model_name"
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of type {config.get('peft_type')!r}. Only LORA is read. {merge}."
        )
    for name in _UNSUPPORTED:
        if config.get(name):
            what = "DoRA" if name == "use_dora" else "not plain LoRA"
            raise CheckpointError(f"{folder} is {what} ({name}={config[name]!r} in {CONFIG}). {merge}.")
    if (start := config.get("init_lora_weights")) not in _PLAIN_INIT:
        raise CheckpointError(f"{folder} changes its base model's weights (init_lora_weights={start!r}). {merge}.")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{folder} trains biases (bias={config['bias']!r}), which are not read. {merge}.")


def _pair(
    folder: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, str], headers: Mapping[str, TensorHeader]
) -> LoraPair:
    """Return the factors of a module, whose rank and scale patterns may set."""
    is_embedding = "embedding_A" in parts
    names = [parts.get(f"embedding_{part}" if is_embedding else part) for part in "AB"]
    down, up = names
    if down is None or up is None or len(parts) != 2:
        raise CheckpointError(f"{folder / WEIGHTS} has one of two factors of {module}. Save the adapter again.")
    shapes = headers[down].shape, headers[up].shape
    rank = _of_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if len(shapes[0]) != 2 or len(shapes[1]) != 2:
        raise CheckpointError(f"{folder} adapts the convolution {module}, which is not supported. Leave it out.")
    if not shapes[0][0] == shapes[1][1] == rank:
        raise CheckpointError(
            f"{folder}: the factors of {module} have shapes {shapes[0]} and {shapes[1]}, and {CONFIG} says rank "
            f"{rank!r}. Save the adapter again."
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{folder / CONFIG}: lora_alpha={alpha!r} is no number. Correct it.")
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank  # https://arxiv.org/abs/2312.03732
    return LoraPair(down, up, alpha / divisor, is_embedding)


def _of_pattern(patterns: Any, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name, as peft reads them."""
    try:
        return next(
            (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module)), default
        )
    except (re.error, AttributeError) as error:
        raise CheckpointError(f"{CONFIG} has an unusable pattern: {error}. Correct it.") from error


def _shape(lora: Lora, name: str) -> tuple[int, ...]:
    if name in lora.replaced:
        return lora.headers[lora.replaced[name]].shape
    pair = lora.pairs[name]
    n, k = lora.headers[pair.up].shape[0], lora.headers[pair.down].shape[1]
    return (k, n) if pair.is_embedding else (n, k)

"""Write an export folder: it is made beside its destination and moved there once it is finished."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qwenvl_kit.checkpoints.adapters import SMALL_FILES, loadable
from qwenvl_kit.checkpoints.checkpoint import Checkpoint, find, read
from qwenvl_kit.checkpoints.loading import load_config
from qwenvl_kit.checkpoints.lora import FoldedWeights, Lora, find_lora
from qwenvl_kit.checkpoints.weight_files import weight_files
from qwenvl_kit.errors import ConfigError, ExportFailed
from qwenvl_kit.inference.preflight import check_checkpoint
from qwenvl_kit.onnx_backend.export.graph import OPSET, GraphWriter
from qwenvl_kit.onnx_backend.export.parity import Parity, verify
from qwenvl_kit.onnx_backend.export.parity_rows import images_of
from qwenvl_kit.onnx_backend.export.text import write_decoder
from qwenvl_kit.onnx_backend.export.vision import write_vision
from qwenvl_kit.onnx_backend.export.weights import BLOCK_SIZE, WEIGHTS_FILE, Stored, Tensors, WeightsWriter
from qwenvl_kit.onnx_backend.manifest import FORMAT, MANIFEST, describe_file, is_export
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from qwenvl_kit.onnx_backend.export.parity_rows import ImageInput

DType = Literal["float32", "float16"]
Quantize = Literal["int8", "int4", "w8a8"]
_BITS = {"int8": 8, "int4": 4, "w8a8": 8}
_BYTES = {"float32": 4.0, "float16": 2.0}
_NOT_COPIED = (MANIFEST, "model.safetensors.index.json")
_TABLE = "text.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export.

    Attributes
    ----------
    path : Path
        The folder; a ``model_name`` for ``backend="onnx"``.
    manifest : dict
        Its versions, source, dtype, quantisation and files.
    parity : Parity or None
        The comparison with the source; None with ``verify_rows=0``.
    """

    path: Path
    manifest: dict[str, Any]
    parity: Parity | None


def to_onnx(
    model: str | Path,
    out: str | Path,
    *,
    dtype: DType = "float32",
    quantize: Quantize | None = None,
    verify_rows: int = 8,
    images: Sequence[ImageInput] | None = None,
    progress: Callable[[str], None] | None = None,
    adapter: str | None = None,
    pictures: Sequence[ImageInput] | None = None,
) -> Exported:
    """Export a checkpoint of the Qwen2.5-VL family to ONNX and compare the export with it.

    Parameters
    ----------
    model : str or path
        ``demo``, a checkpoint's folder, or a name in the local hub cache.
    out : path
        The folder to make. An older export there is replaced once the new one is finished; anything else is refused.
    dtype : {"float32", "float16"}
        Of activations and of weights that are not quantised. CPUs store float16, and compute in float32.
    quantize : {"int8", "int4", "w8a8"}, optional
        How to quantise the text model's matrices. ``int8`` and ``int4`` round weights in blocks of 32 with a scale and
        a zero point each, which is closest to the source. ``w8a8`` rounds weights to int8 with a scale per output, and
        activations with a scale per token. It is the fastest on CPUs with exact int8 products (VNNI), and refused on
        others.
    verify_rows : int
        Rows to compare with the source afterwards; 0 for none.
    images : sequence of PIL images or uint8 arrays (H, W, 3), optional
        Images to compare on; None draws some.
    progress : callable, optional
        Called with a line of text at each step.
    adapter : str, optional
        A LoRA adapter that is folded into the weights, as of the option.
    pictures : sequence, optional
        The former name of `images`.

    Returns
    -------
    Exported

    Raises
    ------
    ModelNotFound, CheckpointError
        There is no checkpoint, or it cannot be exported.
    ConfigError
        An argument is invalid, or `out` holds something other than an export.
    ExportFailed
        The disk is full, or the answers differ from the source's. Nothing is left behind; an older export stays.

    Examples
    --------
    >>> done = to_onnx("demo", "demo-onnx")  # doctest: +SKIP
    >>> done.parity.passed  # doctest: +SKIP
    True
    """
    out, log = Path(out).expanduser().absolute(), progress or (lambda _: None)
    _check_arguments(out, dtype, quantize, verify_rows)
    checkpoint = _source(model)
    lora = find_lora(checkpoint, Config(adapter=adapter))
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_room(checkpoint, out.parent, dtype, quantize)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        manifest = _write(checkpoint, made, dtype, quantize, log, lora)
        parity = None
        if verify_rows:
            log(f"comparing {verify_rows} rows with the source")
            shown = images_of(images, pictures)
            parity = verify(checkpoint.path, made, shown, n_rows=verify_rows, adapter=adapter)
            _check_parity(parity)
            manifest["parity"] = parity.summary()
            _write_manifest(made, manifest)
        log("done")
        _put_in_place(made, out)
    except OSError as error:
        raise ExportFailed(f"The export was not written: {error}. {out} is unchanged.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Exported(out, manifest, parity)


def _check_arguments(out: Path, dtype: str, quantize: str | None, verify_rows: int) -> None:
    if dtype not in _BYTES:
        raise ConfigError(
            f"dtype must be float32 or float16; got {dtype!r}. Pass 'float32' (bfloat16 has no ONNX kernels)."
        )
    if quantize is not None and quantize not in _BITS:
        raise ConfigError(f"quantize must be int8, int4, w8a8 or None; got {quantize!r}. Pass 'int8'.")
    if quantize == "w8a8" and dtype != "float32":
        raise ConfigError(f"quantize='w8a8' requires dtype='float32'; got {dtype!r}. Leave dtype out.")
    if verify_rows < 0:
        raise ConfigError(f"verify_rows must be 0 or more; got {verify_rows}. Pass 8.")
    if out.exists() and not (out.is_dir() and (is_export(out) or not any(out.iterdir()))):
        raise ConfigError(
            f"out must be a new folder, an empty one or an older export; {out} is none of them. Choose another folder."
        )


def _source(model: str | Path) -> Checkpoint:
    folder = Path(model).expanduser()
    checkpoint = read(folder) if folder.is_dir() else find(Config(model_name=str(model)))
    check_checkpoint(checkpoint)
    return checkpoint


def _check_room(checkpoint: Checkpoint, place: Path, dtype: str, quantize: str | None) -> None:
    """Raise if the disk is too small, before minutes of writing."""
    stored = sum(file.stat().st_size for file in weight_files(checkpoint.path, checkpoint.config))
    n_weights = stored / _source_bytes(checkpoint)
    needed = n_weights * (_BYTES[dtype] if quantize is None else _BITS[quantize] / 8 + 0.5)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ExportFailed(
            f"The export needs about {needed / 2**30:.1f} GiB, and {place} has {free / 2**30:.1f} GiB free. Free some "
            "space, or pass quantize='int4'."
        )


def _source_bytes(checkpoint: Checkpoint) -> float:
    text = {**checkpoint.config, **(checkpoint.config.get("text_config") or {})}
    name = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16")
    return _BYTES.get(name, 2.0)


def _write(
    checkpoint: Checkpoint,
    made: Path,
    dtype: str,
    quantize: str | None,
    log: Callable[[str], None],
    lora: Lora | None = None,
) -> dict[str, Any]:
    """Write graphs, weights, configs and tokenizer, and the manifest last; return the manifest."""
    config = load_config(checkpoint)
    folded = None if lora is None else FoldedWeights(lora)
    tensors = Tensors(weight_files(checkpoint.path, checkpoint.config), folded)
    plan = _Plan(quantize)
    tied = bool(config.tie_word_embeddings) and "lm_head.weight" not in tensors
    try:
        with (made / WEIGHTS_FILE).open("wb") as file:
            writer = WeightsWriter(file, dtype)
            table = writer.store(_TABLE, tensors.get(_TABLE))
            log("writing the text model")
            decoder = GraphWriter(tensors, writer, plan.scheme)
            write_decoder(decoder, config.text_config, tied=tied)
            decoder.save(made / "decoder.onnx", "decoder")
            log("writing the vision tower")
            tower = GraphWriter(tensors, writer, plan.scheme)
            write_vision(tower, config.vision_config)
            tower.save(made / "vision.onnx", "vision")
    finally:
        tensors.close()
    with loadable(checkpoint) as configs:
        for file_ in configs.iterdir():
            if file_.suffix in SMALL_FILES and file_.name not in _NOT_COPIED and file_.is_file():
                shutil.copyfile(file_, made / file_.name)
    manifest = _manifest(checkpoint, made, table, plan, writer, dtype=dtype, quantize=quantize)
    if lora is not None:
        manifest["source"]["adapter"] = {"name": lora.path.name, "digest": lora.digest}
    _write_manifest(made, manifest)
    return manifest


class _Plan:
    """Choose the matrices to quantise: those of the text model, because decoding is bound by reading them.

    The vision tower is not quantised: it is a small part of the weights, and bound by arithmetic.
    """

    def __init__(self, scheme: str | None) -> None:
        self._scheme = scheme
        self.quantized: list[str] = []

    def scheme(self, name: str) -> str | None:
        """Return the quantisation of a matrix, or None."""
        if self._scheme is None or name.startswith("vision."):
            return None
        self.quantized.append(name)
        return self._scheme


def _manifest(
    checkpoint: Checkpoint,
    made: Path,
    table: Stored,
    plan: _Plan,
    writer: WeightsWriter,
    *,
    dtype: str,
    quantize: str | None,
) -> dict[str, Any]:
    packages = ("qwenvl_kit", "torch", "transformers", "optimum", "onnx", "onnxruntime")
    return {
        "format": FORMAT,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "source": {"name": checkpoint.path.name, "digest": checkpoint.digest},
        "opset": OPSET,
        "dtype": dtype,
        "quantize": quantize,
        "block_size": BLOCK_SIZE if quantize in ("int8", "int4") else None,
        "quantized": plan.quantized,
        "left_alone": sorted(writer.names() - set(plan.quantized)) if quantize else [],
        "embeddings": {
            "file": WEIGHTS_FILE,
            "dtype": table.dtype,
            "offset": table.offset,
            "shape": list(table.shape),
        },
        "parity": None,
        "files": {file.name: describe_file(file) for file in sorted(made.iterdir())},
    }


def _write_manifest(made: Path, manifest: dict[str, Any]) -> None:
    (made / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def _check_parity(parity: Parity) -> None:
    if not parity.passed:
        raise ExportFailed(f"The export's answers differ from its source's. It was deleted.\n{parity}")


def _put_in_place(made: Path, out: Path) -> None:
    """Move the finished folder to its destination, in place of an older export."""
    os.chmod(made, 0o755)  # mkdtemp makes private folders
    if not out.exists():
        made.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent)) / out.name
    out.rename(old)
    try:
        made.rename(out)
    except OSError:
        old.rename(out)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)

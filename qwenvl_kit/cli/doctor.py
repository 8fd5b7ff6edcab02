"""``qwenvl-kit doctor``: report the machine, the extras, and how the model would run."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit._memory import in_words
from qwenvl_kit._version import __version__
from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.errors import QwenVLError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.options import Config

_EXTRAS = {
    "flash": ("flash_attn", "flash-attention-2 on CUDA"),
    "onnx": ("onnxruntime", "exports to ONNX and running them"),
    "daft": ("daft", "the operator on Daft and Ray"),
    "s3": ("s3fs", "s3:// URLs"),
    "tos": ("tos", "tos:// URLs"),
    "gs": ("gcsfs", "gs:// URLs"),
    "parquet": ("pyarrow", "writing Parquet"),
    "notebook": ("ipywidgets", "progress bars in notebooks"),
}


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("doctor", help="report the machine and how the model would run", description=__doc__)
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Print the report; the status is 1 where the model cannot run."""
    config = config_of(parsed)
    for title, lines in (("Machine", _machine()), ("Extras", _extras())):
        print(f"{title}\n" + "\n".join(f"  {line}" for line in lines))
    print("What would run")
    try:
        planned = list(_plan(config))
    except (QwenVLError, ImportError, OSError, RuntimeError) as error:
        print(f"  nothing: {error}")
        return 1
    print("\n".join(f"  {line}" for line in planned))
    return 0


def _machine() -> Iterator[str]:
    cores = f"{available_cpus()} of {os.cpu_count()} cores"
    yield f"qwenvl_kit {__version__}, Python {platform.python_version()}, {platform.platform()}, {cores}"
    for package in ("torch", "torchvision", "transformers", "accelerate"):
        yield _imported(package)
    yield from _gpus()


def _imported(package: str) -> str:
    """Return a package's version after an import, which detects a mismatch of torch and torchvision."""
    try:
        importlib.import_module(package)
        return f"{package} {importlib.metadata.version(package)}"
    except Exception as error:  # noqa: BLE001  # a broken installation may raise anything
        fix = " (install the matching pair: pip install torch torchvision)" if package.startswith("torch") else ""
        return f"{package} does not import: {type(error).__name__}: {error}{fix}"


def _gpus() -> Iterator[str]:
    try:
        import torch

        from qwenvl_kit.checkpoints.devices import unusable_gpu
    except Exception:  # noqa: BLE001  # reported above
        return
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield f"no CUDA device is visible ({built}; CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r})"
        if fault := unusable_gpu():
            yield fault
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} {found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}"


def _extras() -> Iterator[str]:
    for extra, (package, purpose) in _EXTRAS.items():
        if importlib.util.find_spec(package) is not None:
            yield f"{purpose}: yes"
        else:
            build = " --no-build-isolation" if extra == "flash" else ""
            yield f"{purpose}: no; pip install 'qwenvl_kit[{extra}]'{build}"


def _plan(config: Config) -> Iterator[str]:
    from qwenvl_kit.executors.specs import make_spec

    spec = make_spec(config)
    resolved = spec.resolved
    yield f"{resolved.model} on {resolved.backend}, {resolved.base_url or resolved.device}"
    if resolved.base_url is not None:
        yield "the server answers, and generated one token"
    yield f"dtype {resolved.dtype}, attention {resolved.attention}"
    yield f"batch_size {resolved.batch_size}, rows_in_flight {resolved.rows_in_flight}"
    if resolved.provider is not None:
        yield f"{resolved.provider}, weights {resolved.quantization or 'not quantised'}"
    yield f"images of {resolved.min_pixels} to {resolved.max_pixels} pixels"
    yield from _memory(spec, config)
    yield from (f"ignored: {note}" for note in resolved.notes)
    yield from (f"slow: {advice}" for advice in resolved.advice)


def _memory(spec: BackendSpec, config: Config) -> Iterator[str]:
    """Say what fits: the weights, in the other dtype too, and one image of the largest size."""
    from qwenvl_kit.tasks.plan_fit import largest_image, problems

    found = largest_image(spec, config)
    if found is None:
        return
    row, case = found
    model = case.model
    other = "bfloat16" if model.dtype == "float32" else "float32"
    in_other = model.weights // 2 if other == "bfloat16" else 2 * model.weights
    checkpoint = spec.checkpoint
    is_fixed = checkpoint is None or spec.resolved.provider is not None or "quantization_config" in checkpoint.config
    more = "" if is_fixed else f" ({in_words(in_other)} in {other})"
    free = ", ".join(f"{device} has {in_words(n)} free" for device, n in case.free.items()) or "free memory is unknown"
    yield f"weights of {in_words(model.weights)} in {model.dtype}{more}; {free}"
    (height, width), needed = row.resized[0], sum(part.n_bytes for part in case.parts())
    fits = " ".join(problems(case)) or ("fits" if case.free else "unknown whether it fits")
    yield f"an image of {width}×{height} pixels, {row.visual_tokens} visual tokens: at most {in_words(needed)}; {fits}"

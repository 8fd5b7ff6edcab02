"""Train in one process of a run, and write a checkpoint folder."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.demo.scenes import CELLS, Scene, World, hang_signs, sample_scene, split_of

from .checkpoint import build_model, save_folder
from .forward import run_vision
from .images import ImageBatch, pack_images
from .losses import Figures, PlaceHead, VisionHead, head_loss, row_loss
from .muon import Optimiser, Rates, sum_over_processes
from .rows import RowPacker
from .tokenizer import build_tokenizer, number_ids
from .vocabulary import carry_embeddings, number_codes

_VISION_BATCH = 48
_VISION_THINGS = range(2, 8)  # the vision tower learns more from crowded images in the same time
_VISION_SIGNS = 4  # most in an image
_SIGNED = 0.45  # of images in the joint stage show a sign
_SHORT_NUMBERS = 0.25  # one digit in the middle is read as two if it is as rare as among the numbers up to 99
_JOINT_BATCH = 16
_MUON_RATE = 0.015
_ADAMW_RATE = 1.5e-3
_JOINT_VISION_SCALE = 0.5
_HEAD_WEIGHTS = (0.5, 0.05)
_SIDE_WEIGHT = 0.2  # of the middle layer's answers and of the guided attention
_SIDE_UNTIL = 0.7
_SPREAD = 0.5  # of a coordinate's target to its neighbours
_WARM_UP_STEPS = 40
_DECAY_FROM = 0.27
_LAST_RATE = 0.01
_EMBEDDINGS = "model.language_model.embed_tokens.weight"
_SAVE_EVERY_S = 240.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters of a run.

    Attributes
    ----------
    out
        Folder for the checkpoint, the state of the run and its log.
    minutes
        Wall clock of both stages together.
    vision_share
        Part of the time that trains the vision tower alone.
    init
        A checkpoint folder, or the state of an earlier run, to start from.
    """

    out: Path
    world: World
    minutes: float
    seed: int
    vision_share: float
    n_processes: int
    init: Path | None
    resume: bool
    peak: float
    port: int


class Trainer:
    """One process of a run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        torch.manual_seed(plan.seed)
        self.tokenizer = build_tokenizer()
        self.model: Qwen2_5_VLForConditionalGeneration = build_model(self.tokenizer)
        width = self.model.config.text_config.hidden_size
        self.head, self.place_head = VisionHead(width), PlaceHead(width)
        self.heads = nn.ModuleDict({"vision": self.head, "place": self.place_head})
        self.packer = RowPacker(self.tokenizer, plan.world)
        self.named = [*self.model.named_parameters(), *(("heads." + n, p) for n, p in self.heads.named_parameters())]
        self.seconds, self.step_index, self.stage = 0.0, 0, "vision"
        if plan.init is not None:
            self._load_weights(plan.init)
        self.optimiser = Optimiser(self._trained())
        if plan.resume and (plan.out / "state.pt").exists():
            self._load_state()
        self.rng = np.random.default_rng([plan.seed, self.rank, self.step_index])

    def run(self) -> None:
        """Train until `plan.minutes` are over, then write the checkpoint folder."""
        total_s = self.plan.minutes * 60
        vision_s = total_s * self.plan.vision_share
        saved_s = self.seconds
        while self.seconds < total_s:
            stage = "vision" if self.seconds < vision_s else "joint"
            if stage != self.stage:
                self.stage = stage
                self.optimiser = Optimiser(self._trained())
                self.step_index = 0
            share = self.seconds / vision_s if stage == "vision" else (self.seconds - vision_s) / (total_s - vision_s)
            started = time.perf_counter()
            figures = self._vision_step(share) if stage == "vision" else self._joint_step(share)
            self.seconds += _mean_over_processes(time.perf_counter() - started)
            self.step_index += 1
            if self.rank == 0 and self.step_index % 10 == 0:
                self._log(share, figures)
            if self.rank == 0 and self.seconds - saved_s > _SAVE_EVERY_S:
                saved_s = self.seconds
                self.save()
        if self.rank == 0:
            self.save()

    def save(self) -> None:
        """Write the checkpoint folder and the state for `resume`."""
        self.plan.out.mkdir(parents=True, exist_ok=True)
        save_folder(self.plan.out / "model", self.model, self.tokenizer)
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "seconds": self.seconds,
            "step": self.step_index,
            "stage": self.stage,
        }
        torch.save(state, self.plan.out / "state.tmp")
        os.replace(self.plan.out / "state.tmp", self.plan.out / "state.pt")

    def _vision_step(self, share: float) -> Figures:
        images = pack_images(self._scenes(_VISION_BATCH, _VISION_THINGS))
        features = self._see(images)
        loss, accuracies = head_loss(self.head, features, images)
        self._apply(loss, share, vision_scale=1.0)
        return {"loss": loss.item(), **accuracies}

    def _joint_step(self, share: float) -> Figures:
        scenes = self._scenes(_JOINT_BATCH, range(1, self.plan.world.max_objects + 1))
        images = pack_images(scenes)
        rows = self.packer.pack(scenes, images, self.rng)
        features = self._see(images)
        early = max(0.0, 1 - share / _SIDE_UNTIL)
        loss, figures = row_loss(
            self.model,
            self.place_head,
            rows,
            images,
            features,
            side_weight=_SIDE_WEIGHT * early,
            spread=_SPREAD * early,
        )
        named_loss, accuracies = head_loss(self.head, features, images)
        self._apply(loss + _faded(share, *_HEAD_WEIGHTS) * named_loss, share, vision_scale=_JOINT_VISION_SCALE)
        return {**figures, **accuracies}

    def _see(self, images: ImageBatch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run_vision(self.model, images.patches, images.places, images.windows).float()

    def _apply(self, loss: Tensor, share: float, *, vision_scale: float) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [parameter for _, parameter in self._trained()]
        gradients = sum_over_processes([_gradient(parameter) for parameter in trained])
        scale = 1 / (dist.get_world_size() if dist.is_initialized() else 1)
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt() * scale
        scale *= min(1.0, 1.0 / (norm.item() + 1e-6))
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient * scale
        rate = self.plan.peak * _schedule(self.step_index, share)
        self.optimiser.step(Rates(muon=_MUON_RATE * rate, adamw=_ADAMW_RATE * rate, vision_scale=vision_scale))
        for parameter in trained:
            parameter.grad = None

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        if self.stage == "joint":
            return self.named
        return [(name, p) for name, p in self.named if "visual" in name or name.startswith("heads.vision")]

    def _scenes(self, n: int, counts: range) -> list[Scene]:
        shares = np.array([1.0 + count for count in counts])  # crowded scenes are hard
        shares /= shares.sum()
        scenes: list[Scene] = []
        while len(scenes) < n:
            n_things = int(self.rng.choice(counts, p=shares))
            scene = sample_scene(self.rng, self.plan.world, n_things=n_things)
            if split_of(scene) == "train":
                scenes.append(self._signed(scene))
        return scenes

    def _signed(self, scene: Scene) -> Scene:
        n_empty = len(CELLS) - len(scene.things)
        n_crowded = int(self.rng.integers(1, min(_VISION_SIGNS, n_empty) + 1))
        n_signs = n_crowded if self.stage == "vision" else int(self.rng.random() < _SIGNED)
        return hang_signs(scene, self.rng, n=n_signs, short=_SHORT_NUMBERS)

    def _log(self, share: float, figures: Figures) -> None:
        self.plan.out.mkdir(parents=True, exist_ok=True)
        record = {"stage": self.stage, "step": self.step_index, "seconds": self.seconds, "share": share, **figures}
        with (self.plan.out / "log.jsonl").open("a") as log:
            log.write(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in record.items()}) + "\n")

    def _load_weights(self, source: Path) -> None:
        if source.is_dir():
            weights = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).state_dict()
            drawn = self.model.get_input_embeddings().weight.detach()
            number_codes(drawn, number_ids(self.tokenizer))
            former = AutoTokenizer.from_pretrained(source)
            weights[_EMBEDDINGS] = carry_embeddings(weights[_EMBEDDINGS], former, drawn, self.tokenizer)
            weights["lm_head.weight"] = weights[_EMBEDDINGS]
            self.model.load_state_dict(weights)
            return
        state = torch.load(source, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(grown(state["heads"], self.heads.state_dict()))

    def _load_state(self) -> None:
        state = torch.load(self.plan.out / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.seconds, self.step_index, self.stage = state["seconds"], state["step"], state["stage"]
        self.optimiser = Optimiser(self._trained())
        self.optimiser.load_state_dict(state["optimiser"])


def grown(former: dict[str, Tensor], drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of heads to which labels were added since: their first rows are the former ones."""
    return {name: torch.cat([former[name], rows[len(former[name]) :]]) for name, rows in drawn.items()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _mean_over_processes(number: float) -> float:
    (total,) = sum_over_processes([torch.tensor([number])])
    return total.item() / (dist.get_world_size() if dist.is_initialized() else 1)


def _faded(share: float, first: float, last: float) -> float:
    return first + (last - first) * share


def _schedule(step: int, share: float) -> float:
    """Return the factor on learning rates: warm-up, constant, then linear decay to the last rate."""
    falling = 1 - (1 - _LAST_RATE) * max(0.0, share - _DECAY_FROM) / (1 - _DECAY_FROM)
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * max(_LAST_RATE, falling)

"""Keys of the result cache: equal keys, equal answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenvl_kit.checkpoints.resolve import answer_fields

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.types import Prompt


class CacheKeyBuilder:
    """Make keys for the rows of one run.

    Parameters
    ----------
    resolved : ResolvedConfig
        What runs; its answer fields and its fingerprint are part of every key.
    system : str or None
        The system prompt.
    start_with : str
        Beginning of all answers.
    """

    def __init__(self, resolved: ResolvedConfig, system: str | None, *, start_with: str = "") -> None:
        self._seed = resolved.seed
        self._samples = resolved.do_sample
        begun = [start_with] if start_with else []  # keys of answers without one are those of earlier versions
        fixed = [resolved.fingerprint, system, answer_fields(resolved), *begun]
        self._base = hashlib.blake2b(json.dumps(fixed, sort_keys=True).encode(), digest_size=16)

    def key(self, digests: Sequence[str], prompt: Prompt, sample_index: int) -> str | None:
        """Return the key of a row's answer; None for unseeded samples, which are never shared."""
        if self._samples and self._seed is None:
            return None
        digest = self._base.copy()
        index = sample_index if self._samples else 0
        labels = [list(prompt.labels)] if prompt.labels else []  # keys of free answers are those of earlier versions
        bound = [] if prompt.constraint is None else [{prompt.constraint.kind: prompt.constraint.source}]
        traced = [] if prompt.attribution is None else [prompt.attribution.key]
        digest.update(json.dumps([list(digests), prompt.text, index, *labels, *bound, *traced]).encode())
        return digest.hexdigest()

    def seed(self, key: str | None) -> int | None:
        """Return the seed of a row's generator: from its key, so that its neighbours do not change it."""
        return int(key[:15], 16) if key is not None and self._samples else None

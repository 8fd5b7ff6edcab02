"""What all tests share: examples that do not depend on the machine's speed or on chance."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("here", deadline=None)  # two busy cores are slow enough to fail any deadline
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

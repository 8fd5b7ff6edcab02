"""Cells and prompts in, one `Result` per row out, in order, each exactly once.

Rows are grouped by picture, pictures are loaded ahead in threads, equal questions are asked once, and whatever stops
the run leaves the finished rows as they are. Nothing here knows of frames or tokens.
"""

from qwenvl_kit.pipeline.run import Run
from qwenvl_kit.pipeline.threads import inside_run

__all__ = ["Run", "inside_run"]

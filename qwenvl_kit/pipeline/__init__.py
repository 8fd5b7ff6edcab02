"""Answer one prompt per cell: one `Result` per row, in order, each exactly once.

Rows are grouped by their images, images are loaded ahead in threads, and equal requests run once. Whatever stops a run,
finished rows keep their results.
"""

from qwenvl_kit.pipeline.run import Run
from qwenvl_kit.pipeline.threads import inside_run

__all__ = ["Run", "inside_run"]

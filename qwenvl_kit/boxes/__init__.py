"""Draw, export and judge boxes and points, as ``df.vl.detect`` and ``df.vl.point`` return them."""

from qwenvl_kit.boxes.frame import pictures
from qwenvl_kit.boxes.geometry import inside, iou
from qwenvl_kit.boxes.metrics import BoxMetrics, box_metrics

__all__ = ["BoxMetrics", "box_metrics", "inside", "iou", "pictures"]

"""Export, import and judge boxes and points, as ``df.vl.detect`` and ``df.vl.point`` return them."""

from qwenvl_kit.boxes.coco import from_coco, to_coco
from qwenvl_kit.boxes.frame import pictures
from qwenvl_kit.boxes.geometry import inside, iou
from qwenvl_kit.boxes.label_studio import from_label_studio, to_label_studio
from qwenvl_kit.boxes.metrics import BoxMetrics, box_metrics
from qwenvl_kit.boxes.supervision import from_supervision, to_supervision
from qwenvl_kit.boxes.yolo import YoloLabels, from_yolo, to_yolo

__all__ = [
    "BoxMetrics",
    "YoloLabels",
    "box_metrics",
    "from_coco",
    "from_label_studio",
    "from_supervision",
    "from_yolo",
    "inside",
    "iou",
    "pictures",
    "to_coco",
    "to_label_studio",
    "to_supervision",
    "to_yolo",
]

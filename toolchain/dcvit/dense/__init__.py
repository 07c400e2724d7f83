"""Dense prediction from models whose tokens merge: feature maps with merging undone, and segmentation."""

from dcvit.dense.backbone import DenseBackbone
from dcvit.dense.segmentation import SegmentationVit, attach_head

__all__ = ["DenseBackbone", "SegmentationVit", "attach_head"]

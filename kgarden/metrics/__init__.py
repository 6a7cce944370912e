"""Detection metrics: COCO, PASCAL VOC and Open Images AP, TIDE error analysis, diagnosis and figures."""

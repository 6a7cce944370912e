"""torchvision where its compiled operators do not load: NMS and RoIAlign in Python."""

import importlib.util
import pathlib
import sys

DECLARED = {  # operators that torchvision describes to compilers when it is imported
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
KEPT = []  # declarations live as long as their library


def torchvision_detection():
    """Imports torchvision.models.detection.

    The wheels of PyPI are built beside one release of torch with CUDA; their operators do not load beside
    another. NMS is then the one below, RoIAlign torchvision's own in Python, which it keeps for compilers.

    Raises:
        ImportError: torch or torchvision is not installed.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        raise ImportError("torchvision is not installed")
    loads = _loads(torch, pathlib.Path(spec.origin).parent)
    if not loads and not KEPT:
        KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name, arguments in DECLARED.items():
            KEPT[0].define(name + arguments)
        KEPT[0].impl("nms", lambda *arguments: _nms(torch, *arguments), "CPU")
    import torchvision.models.detection

    if not loads:
        module = sys.modules["torchvision.ops.roi_align"]
        in_python, interpolate = module._roi_align.__wrapped__, module._bilinear_interpolate

        def interpolate_inside(features, images, y, x, *masks):
            """Samples more than a cell outside are 0: a rule of the operator that Python's form lacks."""
            height, width = features.shape[2:]
            rows, columns = (y >= -1) & (y <= height), (x >= -1) & (x <= width)
            inside = rows[:, None, :, None, :, None] & columns[:, None, None, :, None, :]
            return interpolate(features, images, y, x, *masks) * inside

        module._bilinear_interpolate = interpolate_inside

        def roi_align(features, rois, output_size, spatial_scale, sampling_ratio):
            return in_python(features, rois, spatial_scale, *output_size, sampling_ratio, False)

        torchvision.ops.poolers.roi_align = roi_align
        torchvision.ops.boxes._assert_has_ops = lambda: None
    return torchvision.models.detection


def _loads(torch, folder):
    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def _nms(torch, boxes, scores, threshold):
    kept, left = [], torch.argsort(scores, descending=True, stable=True)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        begin = torch.maximum(boxes[first, :2], boxes[left, :2])
        common = (torch.minimum(boxes[first, 2:], boxes[left, 2:]) - begin).clamp(min=0).prod(dim=1)
        left = left[~(common / (area[first] + area[left] - common) > threshold)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)

"""What a TensorFlow graph holds, the functions that it calls included."""

import re

FORBIDDEN = re.compile(r"NonMaxSuppression|While|ForBody|LoopCond|^For$")


def nodes_of(graph_def):
    """(op, [shape, ...]) of every node of the graph and of its library; shapes are lists, None if unknown."""
    for node in graph_def.node:
        yield node.op, _shapes(node)
    for function in graph_def.library.function:
        for node in function.node_def:
            yield node.op, _shapes(node)


def _shapes(node):
    shapes = node.attr["_output_shapes"].list.shape if "_output_shapes" in node.attr else []
    return [None if shape.unknown_rank else [dim.size for dim in shape.dim] for shape in shapes]


def loops_and_nms(graph_def):
    """Names of operations that are a loop or an NMS."""
    return {op for op, _ in nodes_of(graph_def) if FORBIDDEN.search(op)}


def pairs_of_boxes(graph_def, counts):
    """Shapes with two neighbouring axes that both count boxes, as the overlaps of all pairs have.

    Args:
        counts: numbers of boxes that there are: places, candidates, detections, boxes of a block of NMS.
    """
    found, known = set(), 0
    for _, shapes in nodes_of(graph_def):
        for shape in shapes:
            if shape is None:
                continue
            known += 1
            if any(a in counts and b in counts for a, b in zip(shape, shape[1:], strict=False)):
                found.add(tuple(shape))
    assert known > 500  # shapes are there to be seen
    return found

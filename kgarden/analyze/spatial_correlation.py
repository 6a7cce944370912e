"""Spatial correlation: cosine similarity between the bins of a RoI, after a conv-head and after an fc-head.

Wu et al. 2020, arXiv:1904.06493, section 3.4, Fig. 4. An fc-head has no feature map; its first kernel is
split into bins instead (FCHead.cells).
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from kgarden.analyze.curve_styles import STYLES
from kgarden.analyze.loaded_runs import open_runs, progress_of_run, require_objects, require_roi_heads
from kgarden.analyze.outputs import analysis_folder, rounded, write_analysis
from kgarden.analyze.statistics import by_distance, cosines_of_cells, off_diagonal, tiled
from kgarden.analyze.windows import Pyramid
from kgarden.errors import UserError
from kgarden.heads.conv_head import ConvHead
from kgarden.heads.fc_head import FCHead
from kgarden.inference.batching import pad_batch
from kgarden.metrics.figures import BLUES, COLORS, GRAY, INK, figure_of, style_axes
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.structures import BOXES, VALID

MAX_BATCH = 64  # objects per batch of the heads
MAX_LEGEND = 4  # names that fit into the panel of the curves

READING = (
    "Each panel is a grid of S x S bins. The small map in each bin shows the cosine similarity of its "
    "features with those of all other bins, averaged over RoIs at the ground-truth boxes. A uniform panel "
    "means that the head is insensitive to position; isolated points mean that the bins are independent. "
    "The map of an fc-head is the contribution of each bin to its first dense layer, without bias and "
    "ReLU; its weights are compared in the same way, without images. The curves show the mean over all "
    "pairs of bins at a given distance."
)


class BinSimilarity(StaticShapeModel):
    """Model that sums the cosine similarities between bins over RoIs.

    Call:
        {"pyramid", "boxes" (1, N, 4), "valid" (1, N)}
    Returns:
        {head: (S², S²)}
    """

    def __init__(self, readers):
        super().__init__()
        self.readers = readers
        self.built = True

    def call(self, x, training=False):
        sums = {}
        for name, (pool, features) in self.readers.items():
            cosines = cosines_of_cells(features.cells(pool(x["pyramid"], x[BOXES])))
            sums[name] = ops.sum(ops.where(x[VALID][0, :, None, None], cosines, 0.0), axis=0)
        return sums


def readers_of(head):
    """Returns {name: (RoIFeatures, FCHead or ConvHead)} of a RoI head; for a cascade, of its last stage."""
    if hasattr(head, "branches"):
        return {name: (head.pool_of(name), branch.features) for name, branch in head.branches.items()}
    last = head.box_heads[-1] if hasattr(head, "box_heads") else getattr(head, "box_head", None)
    if not hasattr(head, "pool") or not isinstance(getattr(last, "features", None), FCHead | ConvHead):
        return {}
    return {"fc": (head.pool, last.features)}


def analyze_spatial_correlation(
    runs: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Computes the cosine similarities between the bins of the runs' heads.

    Args:
        runs:     run directories; their panels share one figure.
        to:       folder for spatial_correlation.csv, by_distance.csv, cosines.csv (of all pairs of bins),
                  spatial_correlation.png, .svg and reading.txt.
        weights:  file to use instead of a run's best weights.
        limit:    number of images, from the first; None: all.
        progress: function of (images done, images in total).
    Returns:
        {"rows": [{"run", "map", "side", "off_diagonal"}, ...], "reading"}.
    Raises:
        UserError: a run has neither an fc-head nor a conv-head.
    """
    to = analysis_folder(to, ["spatial_correlation", "by_distance", "cosines"], ["spatial_correlation"])
    loaded = open_runs(runs, weights)
    require_roi_heads(loaded)
    for run in loaded:
        if not readers_of(run.detector.roi_head):
            raise UserError(f"{run.name}: its RoI head has neither an fc-head nor a conv-head")
    maps, objects = {}, 0
    for number, run in enumerate(loaded):
        maps_of_run, objects = _maps_of(run, limit, progress_of_run(progress, loaded, number, limit))
        require_objects(objects, runs)
        maps |= {(run.name, name): cosines for name, cosines in maps_of_run.items()}
    rows, distances, cells = [], [], []
    for (run, name), cosines in maps.items():
        side = int(len(cosines) ** 0.5)
        row = {"run": run, "map": name}
        rows.append({**row, "side": side, "off_diagonal": rounded(off_diagonal(cosines))})
        for distance, mean, pairs in zip(*by_distance(cosines, side), strict=True):
            at_distance = {"distance": rounded(distance), "cosine": rounded(mean), "pairs": int(pairs)}
            distances.append(row | at_distance)
        cells += [[run, name, p, q, rounded(cosines[p, q])] for p, q in np.ndindex(cosines.shape)]
    tables = {"spatial_correlation": rows, "by_distance": distances}
    tables["cosines"] = (["run", "map", "cell", "other_cell", "cosine"], cells)
    reading = f"{READING} {objects} objects; crowds are left out."
    write_analysis(to, reading, tables, {"spatial_correlation": figure(maps)})
    return {"rows": rows, "reading": reading}


def _maps_of(run, limit, report):
    """({"<head> output" or "<head> weights": (S², S²) float64}, number of objects) of one run."""
    readers = readers_of(run.detector.roi_head)
    features = ready_to_predict(Pyramid(run.detector))
    similarity = ready_to_predict(BinSimilarity(readers))
    rows = min(MAX_BATCH, max(map(len, run.objects.values())))
    totals, count = dict.fromkeys(readers, 0.0), 0
    for done, (x, _, objects, boxes) in enumerate(run.images(limit), start=1):
        pyramid = features.predict_on_batch(x) if objects else None
        for start in range(0, len(objects), rows):
            batch = boxes[start : start + rows].astype("float32")
            valid = np.arange(rows)[None] < len(batch)
            batch = {"pyramid": pyramid, BOXES: pad_batch(batch, rows)[None], VALID: valid}
            for name, cosines in similarity.predict_on_batch(batch).items():
                totals[name] = totals[name] + np.asarray(cosines, "float64")
        count += len(objects)
        report(done)
    maps = {f"{name} output": total / max(count, 1) for name, total in totals.items()}
    for name, (pool, layer) in readers.items():
        if isinstance(layer, FCHead):
            shape = (pool.size, pool.size, run.detector.neck.channels)
            cells = ops.reshape(layer.weights_of_cells(shape), (1, pool.size, pool.size, -1))
            maps[f"{name} weights"] = np.asarray(cosines_of_cells(cells), "float64")[0]
    return maps, count


def figure(maps):
    """Draws a panel for each map, and one of the curves over the distance between bins."""
    many = len(maps) > MAX_LEGEND
    count = len(maps) + (2 if many else 1)
    columns = min(4, count)
    lines = -(-count // columns)
    result = figure_of(3.2 * columns + 1.6, 3.3 * lines)
    panels = result.subplots(lines, columns, squeeze=False).ravel()
    lowest = min(0.0, min(cosines.min() for cosines in maps.values()))
    for ax, ((run, name), cosines) in zip(panels, maps.items(), strict=False):
        shown = _draw_map(ax, cosines, lowest)
        ax.set_title(f"{run}: {name}\nmean off-diagonal {off_diagonal(cosines):.2f}", fontsize=10, color=INK)
    curves = panels[len(maps)]
    _draw_curves(curves, maps)
    for ax in panels[len(maps) + 1 :]:
        ax.set_axis_off()
    look = dict(fontsize=8.5, frameon=False)
    if many:  # a panel of their own
        panels[len(maps) + 1].legend(*curves.get_legend_handles_labels(), **look, loc="upper left")
    else:
        curves.legend(**look, loc="upper right")
    curves.set_ylim(lowest - 0.02, 1.02 if many else 1.45)  # room for the names
    bar = result.colorbar(shown, ax=panels.tolist(), location="right", shrink=0.8, aspect=30)
    bar.set_label("cosine similarity of two bins", color=INK)
    bar.outline.set_visible(False)
    return result


def _draw_map(ax, cosines, lowest):
    """Draws the small maps of all bins at their positions.   The image."""
    side = int(len(cosines) ** 0.5)
    shown = ax.imshow(tiled(cosines, side), cmap=BLUES, vmin=lowest, vmax=1, interpolation="nearest")
    for line in np.arange(1, side) * side - 0.5:
        ax.axhline(line, color="white", linewidth=1.4)
        ax.axvline(line, color="white", linewidth=1.4)
    ticks = np.arange(side) * side + (side - 1) / 2
    ax.set_xticks(ticks, range(1, side + 1))
    ax.set_yticks(ticks, range(1, side + 1))
    ax.tick_params(length=0, labelsize=8, colors=GRAY)
    for edge in ax.spines.values():
        edge.set_visible(False)
    return shown


def _draw_curves(ax, maps):
    """Draws mean cosines over distance: a colour for each kind of map, a line style for each run."""
    runs, names = (list(dict.fromkeys(key[position] for key in maps)) for position in (0, 1))
    for (run, name), cosines in maps.items():
        distances, means, _ = by_distance(cosines, int(len(cosines) ** 0.5))
        color, style = COLORS[names.index(name) % len(COLORS)], STYLES[runs.index(run) % len(STYLES)]
        look = dict(color=color, marker="o", markersize=3, linewidth=1.6)
        ax.plot(distances, means, style, **look, label=f"{run}: {name}")
    ax.set_xlabel("distance between bins (bins)", color=INK)
    ax.set_ylabel("mean cosine similarity", color=INK)
    ax.set_yticks(np.arange(0, 1.1, 0.2))
    style_axes(ax)
    ax.set_box_aspect(1)

"""How alike the cells of a RoI are, after a conv-head and after an fc-head.

Wu et al. 2020, arXiv:1904.06493, section 3.4, Fig. 4. An fc-head has no map; one is made of it by splitting
its first kernel cell by cell (FCHead.cells).
"""

import numpy as np
from keras import ops

from kgarden.analyze.curve_styles import STYLES
from kgarden.analyze.loaded_runs import need_objects, need_roi_heads, open_runs
from kgarden.analyze.outputs import rounded, write_analysis
from kgarden.analyze.statistics import by_distance, cosines_of_cells, off_diagonal, tiled
from kgarden.analyze.windows import Pyramid
from kgarden.errors import UserError
from kgarden.heads.conv_head import ConvHead
from kgarden.heads.fc_head import FCHead
from kgarden.metrics.figures import BLUES, COLORS, GRAY, INK, figure_of, plain
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.structures import BOXES, VALID

MOST = 64  # objects that go through the heads together
MOST_NAMES = 4  # of curves that have room in their panel

READING = (
    "Each panel is a grid of S x S cells with a small map in each: how alike that cell is to all others, "
    "as the cosine of their vectors, averaged over RoIs that are the objects' own boxes. The more even a "
    "panel, the less the head knows where in the box something lies; a diagonal of points says that every "
    "cell speaks for itself. The map of an fc-head is what each cell adds to its first dense layer, "
    "without bias and ReLU; its weights are compared in the same way, without any image. The curves "
    "give the mean over all pairs of cells at a distance."
)


class CellsAlike(StaticShapeModel):
    """Sums over RoIs of the cosines between their cells.

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
        found = {}
        for name, (pool, features) in self.readers.items():
            cosines = cosines_of_cells(features.cells(pool(x["pyramid"], x[BOXES])))
            found[name] = ops.sum(ops.where(x[VALID][0, :, None, None], cosines, 0.0), axis=0)
        return found


def readers_of(head):
    """{name: (RoIFeatures, FCHead or ConvHead)} of a RoI head; of a cascade its last stage."""
    if hasattr(head, "branches"):
        return {name: (head.pool_of(name), branch.features) for name, branch in head.branches.items()}
    last = head.box_heads[-1] if hasattr(head, "box_heads") else getattr(head, "box_head", None)
    if not hasattr(head, "pool") or not isinstance(getattr(last, "features", None), FCHead | ConvHead):
        return {}
    return {"fc": (head.pool, last.features)}


def analyze_spatial_correlation(runs, to, weights=None, limit=None, progress=None):
    """Correlate the cells of the runs' heads.

    Args:
        runs:     directories; their panels share one figure.
        to:       folder for spatial_correlation.csv, by_distance.csv, cosines.csv (of all pairs of cells),
                  spatial_correlation.png, .svg and reading.txt.
        weights:  another file than a run's best weights.
        limit:    only the first so many images.
        progress: function of (images done, images in all).
    Returns:
        {"rows": [{"run", "map", "side", "off_diagonal"}, ...], "reading"}.
    Raises:
        UserError: a run without an fc-head or conv-head.
    """
    subjects = open_runs(runs, weights)
    need_roi_heads(subjects)
    for subject in subjects:
        if not readers_of(subject.detector.roi_head):
            raise UserError(f"{subject.name}: its RoI head has neither an fc-head nor a conv-head")
    maps, objects = {}, 0
    for number, subject in enumerate(subjects):
        maps_of_run, objects = _maps_of(subject, limit, _told(progress, number, subjects, limit))
        need_objects(objects, runs)
        maps |= {(subject.name, name): cosines for name, cosines in maps_of_run.items()}
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


def _told(progress, number, subjects, limit):
    """`progress` of one run out of several."""
    if progress is None:
        return lambda done: None
    counts = [subject.known(limit) for subject in subjects]
    return lambda done: progress(sum(counts[:number]) + done, sum(counts))


def _maps_of(subject, limit, told):
    """({"<head> output" or "<head> weights": (S², S²) float64}, number of objects) of one run."""
    readers = readers_of(subject.detector.roi_head)
    features = ready_to_predict(Pyramid(subject.detector))
    alike = ready_to_predict(CellsAlike(readers))
    rows = min(MOST, max(map(len, subject.objects.values())))
    totals, count = dict.fromkeys(readers, 0.0), 0
    for done, (x, _, objects, boxes) in enumerate(subject.images(limit), start=1):
        pyramid = features.predict_on_batch(x) if objects else None
        for start in range(0, len(objects), rows):
            part = boxes[start : start + rows].astype("float32")
            asked = np.concatenate([part, part[-1:].repeat(rows - len(part), axis=0)])[None]
            asked = {"pyramid": pyramid, BOXES: asked, VALID: np.arange(rows)[None] < len(part)}
            for name, cosines in alike.predict_on_batch(asked).items():
                totals[name] = totals[name] + np.asarray(cosines, "float64")
        count += len(objects)
        told(done)
    maps = {f"{name} output": total / max(count, 1) for name, total in totals.items()}
    for name, (pool, layer) in readers.items():
        if isinstance(layer, FCHead):
            shape = (pool.size, pool.size, subject.detector.neck.channels)
            cells = ops.reshape(layer.weights_of_cells(shape), (1, pool.size, pool.size, -1))
            maps[f"{name} weights"] = np.asarray(cosines_of_cells(cells), "float64")[0]
    return maps, count


def figure(maps):
    """A panel for each map, and one of curves over the distance between cells."""
    many = len(maps) > MOST_NAMES
    count = len(maps) + (2 if many else 1)
    columns = min(4, count)
    lines = -(-count // columns)
    drawn = figure_of(3.2 * columns + 1.6, 3.3 * lines)
    panels = drawn.subplots(lines, columns, squeeze=False).ravel()
    lowest = min(0.0, min(cosines.min() for cosines in maps.values()))
    for ax, ((run, name), cosines) in zip(panels, maps.items(), strict=False):
        shown = _draw_map(ax, cosines, lowest)
        ax.set_title(
            f"{run}: {name}\n{off_diagonal(cosines):.2f} between different cells", fontsize=10, color=INK
        )
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
    bar = drawn.colorbar(shown, ax=panels.tolist(), location="right", shrink=0.8, aspect=30)
    bar.set_label("cosine of two cells", color=INK)
    bar.outline.set_visible(False)
    return drawn


def _draw_map(ax, cosines, lowest):
    """The small maps of all cells, each where its cell lies.   The image."""
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
    """Mean cosine over distance: a colour for each kind of map, a line style for each run."""
    runs, names = (list(dict.fromkeys(key[place] for key in maps)) for place in (0, 1))
    for (run, name), cosines in maps.items():
        distances, means, _ = by_distance(cosines, int(len(cosines) ** 0.5))
        color, style = COLORS[names.index(name) % len(COLORS)], STYLES[runs.index(run) % len(STYLES)]
        look = dict(color=color, marker="o", markersize=3, linewidth=1.6)
        ax.plot(distances, means, style, **look, label=f"{run}: {name}")
    ax.set_xlabel("distance of two cells, in cells", color=INK)
    ax.set_ylabel("mean cosine", color=INK)
    ax.set_yticks(np.arange(0, 1.1, 0.2))
    plain(ax)
    ax.set_box_aspect(1)

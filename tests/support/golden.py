"""Reference numbers: finding them, reading them, comparing with them.

A golden is an `.npz` file with inputs, settings and outputs of a reference implementation. It lies in the
directory KGARDEN_GOLDENS (default: `tests/goldens`); `index.json` there says, for each prefix
of file names, which arrays are outputs and how closely they must be met. `goldens/README.md` explains the
words.

    @pytest.mark.parametrize("golden", goldens("d2_nms"), ids=str)
    def test_nms_agrees_with_the_reference(golden):
        settings = params(golden)                      # every number of the test comes from the file
        got = {...: nms(golden["boxes"], ...)}         # arrays in our layout: NHWC, HWIO, in x out
        assert_agrees(golden, got)                     # every output, none missing, none extra

One test serves all files of a prefix. Where two tests share a file, each names its part:
`assert_agrees(golden, got, only="grid_.*")`. `conftest.py` fails the run if an output array was left out.
"""

import functools
import json
import os
import pathlib
import re

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

HERE = pathlib.Path(__file__).parents[1] / "goldens"
DIRECTORY = pathlib.Path(os.environ.get("KGARDEN_GOLDENS", HERE))

WORDS = {"rtol", "atol", "exact", "order_by", "where", "skip_nan", "skip_rows", "skip_gt", "ties", "times"}
WORDS |= {"statistical", "skip", "interchangeable_gt", "tf32"}

# The second tolerance: convolutions and dense layers on a GPU that rounds their operands to TF32, 2^-11 each.
TF32_RTOL, TF32_ATOL = 5e-3, 1e-2  # the latter times the standard deviation of the stored array
CONVOLUTIONAL = {"onestage_defcn_3dmf", "onestage_pss_head"}  # besides those whose maps are NCHW
WITHOUT_CONVOLUTION = {"d2_roi_align", "d2_roi_pool", "mmdet_deform_roi_pool"}  # NCHW, geometry alone

compared = set()  # (file name, array name) of this run; conftest.py reads it at the end


# --- finding ------------------------------------------------------------------------------------------------


@functools.cache
def index():
    """The entries of index.json; a directory without one is described by the repository's."""
    home = DIRECTORY if (DIRECTORY / "index.json").exists() else HERE
    return json.loads((home / "index.json").read_text())


def entry_of(name):
    """The entry of index.json that describes the file `name`: the longest prefix wins."""
    fitting = [entry for entry in index() if f"{name}_".startswith(entry["prefix"] + "_")]
    if not fitting:
        raise LookupError(f"{name}: no entry of index.json has a prefix of this name")
    return max(fitting, key=lambda entry: len(entry["prefix"]))


def goldens(prefix):
    """All files that index.json describes under exactly this prefix, for `parametrize(..., ids=str)`."""
    if prefix not in {entry["prefix"] for entry in index()}:
        raise LookupError(f"{prefix}: not a prefix of index.json")
    found = [Golden(path) for path in sorted(DIRECTORY.glob(f"{prefix}*.npz"))]
    return [golden for golden in found if golden.entry["prefix"] == prefix]


def params(golden):
    """The settings of a file, as a dictionary."""
    return golden.params


class Golden:
    """One file. `golden[name]` is an array in our layout, `golden.raw(name)` as the reference stores it."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.name = self.path.stem
        self.entry = entry_of(self.name)

    def __str__(self):
        return self.name

    @functools.cached_property
    def _arrays(self):
        with np.load(self.path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    @functools.cached_property
    def params(self):
        return json.loads(str(self._arrays["params"]))

    @property
    def files(self):
        """Names of all arrays, settings left out."""
        return [name for name in self._arrays if name != "params"]

    def __contains__(self, name):
        return name in self._arrays

    def raw(self, name):
        """The array in the reference's layout; float16 holds exact values and is widened to float32."""
        array = self._arrays[name]
        return array.astype("float32") if array.dtype == np.float16 else array

    def __getitem__(self, name):
        return to_our_layout(name, self.raw(name), self.entry["layout"])

    def matching(self, pattern):
        """{name: array} in our layout, of all names that match the pattern in full, in stored order."""
        return {name: self[name] for name in self.files if re.fullmatch(pattern, name)}

    def state_dict(self, prefix="param/"):
        """{reference's name: array in the reference's layout}: what a weight table reads."""
        return {name.removeprefix(prefix): self.raw(name) for name in self.files if name.startswith(prefix)}

    @functools.cached_property
    def outputs(self):
        """{name of an output array: the pattern of index.json that it matches}."""
        patterns = self.entry["outputs"]
        return {name: pattern for name in self.files for pattern in patterns if re.fullmatch(pattern, name)}

    def rule(self, name):
        """The words of comparison for one output array, those of `params.compare` merged over the index's."""
        pattern = self.outputs[name]
        words = dict(self.entry["tolerance"][pattern])
        for key, changed in self.params.get("compare", {}).items():
            if key == pattern or re.fullmatch(key, name):
                if changed.keys() & {"rtol", "atol"} and "exact" not in changed:
                    words.pop("exact", None)
                words |= changed
        if self.is_convolutional and not words.get("exact") and rounds_to_tf32():
            words["tf32"] = True
        unknown = words.keys() - WORDS
        assert not unknown, f"{self.name}: {name}: unknown words of comparison {sorted(unknown)}"
        return words

    @property
    def is_convolutional(self):
        """Whether convolutions or dense layers lead to the outputs."""
        prefix = self.entry["prefix"]
        in_nchw = self.entry["layout"].startswith("NCHW") and prefix not in WITHOUT_CONVOLUTION
        return in_nchw or prefix in CONVOLUTIONAL

    def named_in(self, name, word):
        """The array that `word` of the rule of `name` points to; groups of the pattern are filled in."""
        match = re.fullmatch(self.outputs[name], name)
        return match.expand(self.rule(name)[word])


# --- layouts ------------------------------------------------------------------------------------------------

CHANNELS_LAST_ALREADY = {"fc_cell_out"}  # stored (N, y, x, C) in a file whose other maps are NCHW


def to_our_layout(name, array, layout):
    """NCHW maps to NHWC, OIHW kernels to HWIO, (out, in) matrices to (in, out), CHW images to HWC.

    A parameter is what the reference calls one (`param/`, `grad/`, ...`weight`); every other array of four
    dimensions is a feature map. Depthwise and grouped kernels follow the same rule: (O, I/groups, H, W) to
    (H, W, I/groups, O). A matrix behind a flattened map still needs `flattened_hwc`.
    """
    if not layout.startswith("NCHW") or name in CHANNELS_LAST_ALREADY:
        return array
    is_parameter = bool(re.search(r"(^|/)(grad_)?param/|^grad/", name))
    is_weight = name.endswith("weight")
    if array.ndim == 4:
        return array.transpose((2, 3, 1, 0) if is_weight else (0, 2, 3, 1))
    if array.ndim == 3 and (array.dtype == np.uint8 or is_parameter):
        return array.transpose(1, 2, 0)
    if array.ndim == 2 and is_parameter and is_weight:
        return array.T
    return array


def flattened_hwc(matrix, chw):
    """Rows of an (in, out) matrix that reads a map flattened as (C, H, W), put in the order (H, W, C)."""
    c, h, w = chw
    return matrix.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(c * h * w, -1)


@functools.cache
def rounds_to_tf32():
    """Whether convolutions run as TF32: on a GPU from Ampere on, if nothing forbids it."""
    import keras

    from kgarden.ops import float32

    if keras.backend.backend() != "jax":
        return float32._tensorflow_rounds()
    import jax

    device = jax.devices()[0]
    exact = jax.config.jax_default_matmul_precision in ("highest", "float32")
    return device.platform == "gpu" and float(device.compute_capability) >= 8 and not exact


# --- comparing ----------------------------------------------------------------------------------------------


def assert_agrees(golden, got, only=".*"):
    """Every output array of the file (or of the part `only`), none missing, none extra, at its tolerance.

    Args:
        golden: the file.
        got: {name: array or scalar} in our layout.
        only: pattern of the names that this test answers for.
    """
    wanted = [name for name in golden.outputs if re.fullmatch(only, name)]
    rules = {name: golden.rule(name) for name in wanted}
    required = {name for name in wanted if "skip" not in rules[name]}
    missing, extra = required - got.keys(), got.keys() - set(wanted)
    assert wanted, f"{golden}: no output array is called {only}"
    assert not missing and not extra, f"{golden}: missing {sorted(missing)}, extra {sorted(extra)}"
    compared.update((golden.name, name) for name in wanted)

    got = {name: np.asarray(array) for name, array in got.items() if name in required}
    stored = {name: golden[name] for name in required}
    for name in sorted(required):
        assert got[name].shape == stored[name].shape, (
            f"{golden}: {name}: shape {got[name].shape}, the reference has {stored[name].shape}"
        )
    for name in [name for name in wanted if name in required]:
        if "order_by" not in rules[name]:
            _assert_array(golden, name, rules[name], got=got[name], stored=stored[name])
    for by in sorted({golden.named_in(name, "order_by") for name in required if "order_by" in rules[name]}):
        rows = [n for n in required if "order_by" in rules[n] and golden.named_in(n, "order_by") == by]
        assert by in got, f"{golden}: {rows} are ordered by {by}, which is not among the arrays compared here"
        _assert_rows_in_some_order(golden, by, sorted(rows), got=got, stored=stored)


def _assert_array(golden, name, rule, got, stored):
    """One array, element by element, under every word but `order_by`."""
    got, stored = _without_skipped(golden, name, rule, got=got, stored=stored)
    if "ties" in rule:
        return _assert_equal_up_to_ties(golden, name, golden.raw(rule["ties"]), got=got, stored=stored)
    message = f"{golden}: {name}"
    if rule.get("exact"):
        return np.testing.assert_array_equal(got, stored, err_msg=message)
    rtol, atol = _tolerance(rule, golden[name])
    np.testing.assert_allclose(got, stored, rtol=rtol, atol=atol, err_msg=message)


def _tolerance(rule, stored):
    """rtol and atol; `times: "std"` makes atol relative to the spread of the stored array."""
    assert rule.keys() & {"rtol", "atol"}, f"a rule without a tolerance: {rule}"
    atol = rule.get("atol", 0)
    if "times" in rule:
        assert rule["times"] == "std", f"times: {rule['times']}"
        atol = atol * float(np.std(stored))
    if "tf32" in rule:
        return max(rule.get("rtol", 0), TF32_RTOL), max(atol, TF32_ATOL * float(np.std(stored)))
    return rule.get("rtol", 0), atol


def _without_skipped(golden, name, rule, got, stored):
    """Both sides without the rows or elements that the rule leaves out."""
    if "interchangeable_gt" in rule:
        got, stored = (_lowest_equal_gt(golden, name, side) for side in (got, stored))
    keep = np.ones(stored.shape, bool)
    if "where" in rule:
        keep &= _along_rows(golden.raw(rule["where"]).astype(bool), stored)
    if "skip_rows" in rule:
        rows = golden.params[rule["skip_rows"]]
        keep[rows[name] if isinstance(rows, dict) else rows] = False
    if rule.get("skip_nan"):
        keep &= ~np.isnan(stored)
    for case, row in golden.params[rule["skip_gt"]].get(name, []) if "skip_gt" in rule else []:
        keep[case] &= (got[case] != row) & (stored[case] != row)
    return (got, stored) if keep.all() else (got[keep], stored[keep])


def _along_rows(mask, array):
    """A mask of the leading axes, seen at every element of the array."""
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (array.ndim - mask.ndim)), array.shape)


def _lowest_equal_gt(golden, name, matched):
    """Every ground-truth index replaced by the lowest one with the same box and label; -1 stays."""
    image = re.search(r"_im[0-9]+$", name)
    suffix = image.group() if image else ""
    boxes = next(golden.raw(k + suffix) for k in ("gt_boxes", "gt_bboxes") if k + suffix in golden)
    labels = next(golden.raw(k + suffix) for k in ("gt_labels", "gt_classes") if k + suffix in golden)
    if boxes.ndim == 2:
        boxes, labels, matched = boxes[None], labels[None], matched[None]
        return _lowest_equal_in_batch(boxes, labels, matched)[0]
    return _lowest_equal_in_batch(boxes, labels, matched)


def _lowest_equal_in_batch(boxes, labels, matched):
    result = matched.copy()
    for i in range(len(boxes)):
        same = (boxes[i][:, None] == boxes[i][None]).all(-1) & (labels[i][:, None] == labels[i][None])
        lowest = same.argmax(axis=1)
        result[i] = np.where(matched[i] >= 0, lowest[np.maximum(matched[i], 0)], matched[i])
    return result


def _assert_equal_up_to_ties(golden, name, values, got, stored):
    """Indices in the order of `values`; those with equal values may stand in any order."""
    message = f"{golden}: {name}"
    assert ((got >= 0) & (got < len(values))).all(), f"{message}: an index outside the table"
    np.testing.assert_array_equal(values[got], values[stored], err_msg=f"{message}, by value")
    for value in np.unique(values[stored]):
        tied = values[stored] == value
        np.testing.assert_array_equal(np.sort(got[tied]), np.sort(stored[tied]), err_msg=f"{message}, tied")


def _assert_rows_in_some_order(golden, by, names, got, stored):
    """Rows of all arrays `names`, jointly, in descending order of `by`; near-equal scores may swap rows."""
    _, atol = _tolerance(golden.rule(by), stored[by])
    for lead in np.ndindex(stored[by].shape[:-1]):
        order_got = np.argsort(-got[by][lead], kind="stable")
        order_stored = np.argsort(-stored[by][lead], kind="stable")
        scores = stored[by][lead][order_stored]
        agree = np.abs(scores[:, None] - scores[None, :]) < 2 * atol  # (stored row, got row) may be paired
        np.fill_diagonal(agree, True)
        for name in names:
            rule = golden.rule(name)
            a, b = got[name][lead][order_got], stored[name][lead][order_stored]
            agree &= _rows_agree(rule, a[None, :], b[:, None], stored[name])
        partner = maximum_bipartite_matching(csr_array(agree.astype(np.int8)), perm_type="column")
        lost = np.flatnonzero(partner < 0)
        if lost.size:
            row = order_stored[lost[0]]
            place = order_got[lost[0]]
            same_place = {name: (got[name][lead][place], stored[name][lead][row]) for name in names}
            raise AssertionError(
                f"{golden}: {lost.size} of {len(scores)} rows of {names} at {lead} have no partner; the "
                f"first is row {row}, score {scores[lost[0]]}; (got, reference): {same_place}"
            )


def _rows_agree(rule, got, stored, whole):
    """(N, 1, ...) against (1, N, ...): which pairs of rows agree at the rule's tolerance.   (N, N) bool."""
    if rule.get("exact"):
        equal = got == stored
    else:
        rtol, atol = _tolerance(rule, whole)
        equal = np.isclose(got, stored, rtol=rtol, atol=atol)
    return equal.reshape(equal.shape[:2] + (-1,)).all(axis=-1)


# --- the recorder -------------------------------------------------------------------------------------------


def faults_of_the_run(not_yet, done=None):
    """What the run left out: lines that say which array of which file was not compared.

    Args:
        not_yet: prefixes of index.json that this run cannot compare (not_yet.py). A prefix in this set
            whose files were all compared is a fault too, so that the lists stay true.
        done: set of (file name, array name); by default those compared in this process.
    """
    done = compared if done is None else done
    prefixes = {entry["prefix"] for entry in index()}
    faults = [
        f"not_yet.py names {name}, which is no prefix of index.json" for name in sorted(not_yet - prefixes)
    ]
    left = {prefix: 0 for prefix in not_yet}
    seen = set()
    for path in sorted(DIRECTORY.glob("*.npz")):
        golden = Golden(path)
        missing = [name for name in golden.outputs if (golden.name, name) not in done]
        prefix = golden.entry["prefix"]
        seen.add(prefix)
        if prefix in not_yet:
            left[prefix] += len(missing)
        elif missing:
            faults.append(f"{golden.name}: not compared: {', '.join(missing)}")
    for prefix in sorted(not_yet & seen):
        if left[prefix] == 0:
            faults.append(f"not_yet.py names {prefix}, yet every array of it was compared: take it off")
    if not seen:
        faults.append(f"{DIRECTORY}: no golden here")
    return faults

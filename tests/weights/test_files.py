"""Files of weights: what PyTorch wrote is read exactly, and nothing in a file is ever run."""

import io
import pathlib
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from kgarden.errors import UserError
from kgarden.weights.files import read_weights, write_weights

FILES = pathlib.Path(__file__).parent / "files"

# In both of PyTorch's formats, written by PyTorch 2.13: views of a 4 x 6 tensor of 0 to 23, other types, and
# what training leaves beside the weights.
EXPECTED = {
    "conv": np.float32([[0, 1, 2], [6, 7, 8]]),
    "view": np.float32([[8, 9], [14, 15]]),
    "transposed": np.arange(24, dtype="float32").reshape(4, 6).T,
    "half": np.float16([1.5, -2]),
    "wide": np.float32([1.5, 2.0**127 * 1.765625]),  # 3e38 with the 8 bits of a bfloat16
    "count": np.int64(7),
    "empty": np.zeros((0, 3), "float32"),
    "parameter": np.float32([0.25]),
}


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_legacy.pth"])
def test_a_checkpoint_of_pytorch(name):
    weights = read_weights(FILES / name)
    assert weights.keys() == EXPECTED.keys()
    for key, array in EXPECTED.items():
        assert weights[key].dtype == array.dtype
        np.testing.assert_array_equal(weights[key], array, err_msg=key, strict=True)


def test_a_pickle_of_arrays_as_detectron2s_model_zoo_has_it(tmp_path):
    blobs = {"conv1_w": np.arange(6, dtype="float32").reshape(1, 2, 3), "b": np.asfortranarray(np.eye(2, 3))}
    for protocol in (0, 2, 4):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"model": blobs, "matching_heuristics": True}, protocol))
        weights = read_weights(path)
        assert weights.keys() == blobs.keys()
        for key, array in blobs.items():
            np.testing.assert_array_equal(weights[key], array, strict=True)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_is_written_is_read_again(tmp_path, ending):
    weights = {"a.weight": EXPECTED["transposed"].reshape(3, 2, 4), "b": np.array(3, "float32")}
    weights["c"] = EXPECTED["empty"]
    path = tmp_path / f"folder/of{ending}"
    write_weights(path, weights)
    for key, array in read_weights(path).items():
        np.testing.assert_array_equal(array, weights[key], strict=True)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_bfloat16_of_safetensors_is_float32(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.array([1.5, -2], ml_dtypes.bfloat16)}, path)
    np.testing.assert_array_equal(read_weights(path)["a"], np.float32([1.5, -2]), strict=True)


def test_a_compressed_file_that_unfolds_to_much_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(10**6, "float32"))
    with pytest.raises(UserError, match="refused: it unfolds to more than 100 times its size"):
        read_weights(path)


def test_a_damaged_compressed_archive_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(5000, dtype="float32"))
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: damaged, or no file of weights .Error -3"):
        read_weights(path)


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weights = {"a.weight": np.arange(24, dtype="float32").reshape(2, 3, 4), "b": np.float32(3)}
    write_weights(tmp_path / "a.pth", weights)
    for key, tensor in torch.load(tmp_path / "a.pth", weights_only=True).items():
        np.testing.assert_array_equal(tensor.numpy(), weights[key], strict=True)


def test_names_lose_what_training_puts_before_them(tmp_path):
    path = tmp_path / "a.npz"
    for wrapped in ("state_dict.module.fc.bias", "module.fc.bias", "model.fc.bias"):
        np.savez(path, **{wrapped: np.ones(2)})
        assert list(read_weights(path)) == ["fc.bias"]


# --- hostile and damaged files ------------------------------------------------------------------------------

TOUCH = b"(S'touch %s'\ntR."  # the argument of os.system


class Calls:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def in_archive(pickled):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return content.getvalue()


@pytest.mark.parametrize("wrap", [bytes, in_archive], ids=["pickle", "archive"])
def test_a_pickle_that_calls_something_is_refused(tmp_path, wrap):
    mark, path = tmp_path / "ran", tmp_path / "a.pth"
    for called in (b"cposix\nsystem\n", b"cos\nsystem\n", b"csubprocess\ngetoutput\n"):
        path.write_bytes(wrap(called + TOUCH % str(mark).encode()))
        with pytest.raises(
            UserError, match="refused: it asks for .*(system|getoutput).*nothing of it was run"
        ):
            read_weights(path)
    path.write_bytes(wrap(pickle.dumps({"a": Calls(eval, f"open({str(mark)!r}, 'w')")}, 2)))
    with pytest.raises(UserError, match=r"asks for __builtin__\.eval"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "pickled, message",
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo of 2147483647 entries"),
        (pickle.dumps({"a": np.array([{}], dtype=object)}, 2), "arrays of type 'O8'"),
        (b"\x80\x02}X\x01\x00\x00\x00aU\x03abcQs.", "an object of kind 'abc'"),
        (pickle.dumps({"model": {"a": 1}}), "no weights in it"),
        (b"\x80\x02ctorch\nFloatStorage\n}U\x05dtypeU\x03<f8sb.", "a change of what it was given"),
    ],
    ids=["memo", "objects", "persistent", "empty", "changed"],
)
def test_other_pickles_are_refused_in_one_line(tmp_path, pickled, message):
    path = tmp_path / "a.pth"
    path.write_bytes(pickled)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_tensors_stay_within_what_is_stored(tmp_path):
    """Shape (6, 4) and strides (1, 6) of the transposed view of 24 elements are the file's own claims."""
    content, path = (FILES / "checkpoint_legacy.pth").read_bytes(), tmp_path / "a.pth"
    shape, strides = b"K\x06K\x04", b"K\x01K\x06"
    for stored, claim in ((shape, b"K\x07K\x04"), (shape, b"K\x06K\xff"), (strides, b"K\x01K\x07")):
        assert content.count(stored) == 1
        path.write_bytes(content.replace(stored, claim))
        with pytest.raises(
            UserError, match=r"shape \((7, 4|6, 255|6, 4)\) is larger than what is stored of it"
        ):
            read_weights(path)


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_legacy.pth"])
def test_damaged_files_are_one_line(tmp_path, name):
    content, path, draw = (FILES / name).read_bytes(), tmp_path / name, random.Random(0)
    for trial in range(300):
        damaged = bytearray(content)
        if trial % 3 == 0:
            damaged = damaged[: draw.randrange(len(damaged))]
        for _ in range(draw.randrange(1, 5)):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)

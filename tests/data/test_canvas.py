import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")

from kgarden.data import canvas  # noqa: E402
from kgarden.ops.boxes import rescale  # noqa: E402


@pytest.mark.parametrize(
    "hw,short,long,expected",
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 1066.67
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),  # 1199.06
        ((333, 1000), 800, 1333, (444, 1333)),  # the long side decides: 443.889
        ((375, 500), 800, 1333, (800, 1067)),
        ((480, 640), 240, 320, (240, 320)),
        ((100, 100), 800, 1333, (800, 800)),
        ((3, 2), 1, 100, (2, 1)),  # 1.5 is rounded up
        ((5000, 1), 10, 100, (100, 1)),  # 0.02, but an image has at least one pixel
    ],
)
def test_sizes_by_hand(hw, short, long, expected):
    np.testing.assert_array_equal(canvas.fitted_hw(hw, short, long), expected)


def test_sizes_agree_with_the_rule_in_exact_fractions():
    from fractions import Fraction

    rng = np.random.default_rng(0)
    hw = rng.integers(1, 5000, (500, 2))
    got = canvas.fitted_hw(hw, 800, 1333).numpy()
    for (h, w), size in zip(hw.tolist(), got, strict=True):
        scale = min(Fraction(800, min(h, w)), Fraction(1333, max(h, w)))
        np.testing.assert_array_equal(size, [max(1, int(side * scale + Fraction(1, 2))) for side in (h, w)])


def test_default_canvases_hold_every_image():
    canvases = canvas.default_canvases(800, 1333)
    assert canvases == [[800, 1344], [1344, 800]]
    assert canvas.default_canvases(256, 256) == [[256, 256]]
    assert canvas.default_canvases(800, 1333, divisor=128) == [[896, 1408], [1408, 896]]
    hw = np.random.default_rng(1).integers(1, 4000, (1000, 2))
    which = canvas.canvas_of(hw, canvases, 800, 1333).numpy()
    assert (canvas.fitted_hw(hw, 800, 1333).numpy() <= np.array(canvases)[which]).all()
    assert set(which[hw[:, 0] < hw[:, 1] * 0.99]) == {0} and 1 in which


def test_first_canvas_that_holds_the_image_is_taken():
    canvases = [[240, 320], [320, 240], [320, 320]]
    assert canvas.canvas_of((480, 640), canvases, 240, 320) == 0
    assert canvas.canvas_of((640, 480), canvases, 240, 320) == 1
    assert canvas.canvas_of((640, 640), canvases, 240, 320) == 0  # 240x240
    assert canvas.canvas_of((640, 640), canvases, 320, 320) == 2


def test_image_larger_than_every_canvas_is_downscaled():
    image = np.full((640, 480, 3), 200, "uint8")
    out, size_hw = canvas.resize_to_canvas(image, 240, 320, [[240, 320]])
    assert out.shape == (240, 320, 3)
    np.testing.assert_array_equal(size_hw, [240, 180])


@pytest.mark.parametrize("hw", [(480, 640), (37, 91), (91, 37), (1, 1), (240, 320), (2000, 31)])
def test_image_is_in_the_upper_left_corner_and_the_rest_is_zero(hw):
    image = np.full((*hw, 3), 255, "uint8")
    out, size_hw = canvas.resize_to_canvas(image, 240, 320)
    (h, w), out = size_hw.numpy(), out.numpy()
    assert out.dtype == np.uint8 and out.shape in [(256, 320, 3), (320, 256, 3)]
    assert (out[:h, :w] == 255).all()
    assert not out[h:].any() and not out[:, w:].any()


def test_equal_size_means_equal_pixels():
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype="uint8")
    np.testing.assert_array_equal(canvas.resize_to_canvas(image, 240, 320, [[240, 320]])[0], image)


@pytest.mark.parametrize(
    "hw,size_hw", [((480, 640), (240, 320)), ((100, 150), (64, 77)), ((50, 70), (130, 190))]
)
def test_resizing_is_pillows_bilinear(hw, size_hw):
    """Pillow, the references' loader, antialiases with half-pixel centres."""
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype="uint8")
    got = canvas.resize(image, size_hw).numpy().astype(int)
    expected = Image.fromarray(image).resize(size_hw[::-1], Image.Resampling.BILINEAR)
    assert np.abs(got - np.asarray(expected)).max() <= 1


def test_without_antialiasing_four_neighbours_contribute():
    image = np.zeros((8, 8, 3), "uint8")
    image[::4] = 255  # between the samples of an image 4 times smaller
    assert not canvas.resize(image, (2, 2), antialias=False).numpy().any()
    assert canvas.resize(image, (2, 2)).numpy().all()


def test_boxes_map_back_to_the_original_size():
    original_hw, size_hw = np.array([[480, 640], [333, 500]]), np.array([[240, 320], [213, 320]])
    boxes = np.float32([[[0, 0, 320, 240], [10, 20, 30, 40]], [[0, 0, 320, 213], [32, 21.3, 64, 106.5]]])
    back = np.asarray(rescale(boxes, size_hw, original_hw))
    np.testing.assert_allclose(back[0], [[0, 0, 640, 480], [20, 40, 60, 80]])
    np.testing.assert_allclose(back[1], [[0, 0, 500, 333], [50, 33.3, 100, 166.5]], rtol=1e-6)
    np.testing.assert_allclose(rescale(boxes[:1], size_hw[:1], original_hw[:1])[0], back[0])


def test_saved_model_runs_without_this_package(tmp_path):
    import subprocess
    import sys

    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
    def serve(images):
        out, size_hw = tf.map_fn(
            lambda image: canvas.resize_to_canvas(image, 60, 80, [[64, 96]]),
            images,
            fn_output_signature=(tf.TensorSpec((64, 96, 3), tf.uint8), tf.TensorSpec((2,), tf.int32)),
        )
        return {"images": out, "size_hw": size_hw}

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": serve})
    images = np.random.default_rng(0).integers(0, 256, (2, 120, 160, 3), dtype="uint8")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np, tensorflow as tf\n"
        "model = tf.saved_model.load('model')\n"
        "out = model.signatures['serving_default'](tf.constant(np.load('images.npy')))\n"
        "assert 'kgarden' not in sys.modules\n"
        "np.savez('out.npz', **{key: value.numpy() for key, value in out.items()})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    served = np.load(tmp_path / "out.npz")
    for image, out, size_hw in zip(images, served["images"], served["size_hw"], strict=True):
        expected, expected_hw = canvas.resize_to_canvas(image, 60, 80, [[64, 96]])
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(size_hw, expected_hw)

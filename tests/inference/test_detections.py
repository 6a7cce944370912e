"""Results of Predictor: what they hold and what they are turned into."""

import importlib.util
import io
import sys
import types

import numpy as np
import pytest

from kgarden.errors import UserError
from kgarden.inference import video
from kgarden.inference.detections import Detections
from kgarden.inference.video import frames_of
from kgarden.utils.paste_masks import paste_masks
from kgarden.visualization.draw import color_of

pytestmark = pytest.mark.both_backends
CATEGORIES = [{"id": 7, "name": "cup"}, {"id": 3, "name": "dish"}]
IMAGE = np.full((40, 60, 3), 100, "uint8")


def detections(path=None, **more):
    """Three detections and a row of padding."""
    padded = {
        "boxes": np.float32([[10, 5, 30, 25], [0, 0, 60, 40], [1, 2, 3, 4.5], [0, 0, 0, 0]]),
        "scores": np.float32([0.9, 0.5, 0.25, 0.0]),
        "labels": np.int32([1, 0, 1, -1]),
        "valid": np.array([True, True, True, False]),
        **more,
    }
    return Detections(padded, CATEGORIES, IMAGE.shape[:2], read=lambda: IMAGE, path=path)


def test_attributes_hold_the_valid_rows_and_items_the_padded_arrays():
    found = detections()
    assert len(found) == 3 and found.boxes.shape == (3, 4) and found.labels.tolist() == [1, 0, 1]
    assert found.names == ["dish", "cup", "dish"] and found.masks is None
    assert [(one.name, one.score, one.label, one.mask) for one in found][:2] == [
        ("dish", pytest.approx(0.9), 1, None),
        ("cup", 0.5, 0, None),
    ]
    np.testing.assert_array_equal([one.box for one in found], found.boxes)
    assert found["boxes"].shape == (4, 4) and {**found}.keys() == found.keys() == dict(found.items()).keys()
    assert "scores" in found and "masks" not in found
    assert repr(found) == "<3 detections, 60x40 px: dish 0.90, cup 0.50, dish 0.25>"
    nothing = detections("a.jpg", valid=np.zeros(4, bool))
    assert repr(nothing) == "<0 detections of a.jpg, 60x40 px>" and len(nothing) == 0 and list(nothing) == []
    assert nothing.boxes.shape == (0, 4) and nothing.to_coco(1) == []


def test_drawings_have_the_boxes_above_min_score():
    drawn = np.asarray(detections().draw(labels="none"))
    assert (drawn[5, 15] == color_of(1)).all() and (drawn[0, 50] == color_of(0)).all()
    assert (np.asarray(detections().draw(min_score=0.6, labels="none"))[0, 50] == 100).all()
    assert (IMAGE == 100).all()
    with pytest.raises(UserError, match="labels 'all'"):
        detections().draw(labels="all")


def test_coco_and_records():
    """xywh, the data set's own ids; by hand."""
    [first, second, third] = detections().to_coco(12)
    assert first == {"image_id": 12, "category_id": 3, "bbox": [10, 5, 20, 20], "score": pytest.approx(0.9)}
    assert second["category_id"] == 7 and third["bbox"] == [1, 2, 2, 2.5]
    record = detections().to_records()[1]
    assert record == {"box": [0, 0, 60, 40], "score": 0.5, "category_id": 7, "name": "cup"}


def test_masks_are_those_of_paste_masks():
    masks = np.random.default_rng(0).random((4, 8, 8)).astype("float32")
    found = detections(masks=masks)
    np.testing.assert_array_equal(found.masks, paste_masks(masks, found["boxes"], (40, 60))[:3])
    np.testing.assert_array_equal([one.mask for one in found], found.masks)
    assert all(one["segmentation"]["size"] == [40, 60] for one in found.to_coco(1) + found.to_records())


def test_supervision(monkeypatch):
    """With the package if it is installed, else with a stand-in of its constructor."""
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(
        UserError, match=r"to_supervision needs supervision: pip install 'kgarden\[supervision\]'"
    ):
        detections().to_supervision()
    monkeypatch.delitem(sys.modules, "supervision")
    if importlib.util.find_spec("supervision") is None:
        stand_in = types.ModuleType("supervision")
        stand_in.Detections = types.SimpleNamespace
        monkeypatch.setitem(sys.modules, "supervision", stand_in)
    found = detections(masks=np.ones((4, 8, 8), "float32"))
    other = found.to_supervision()
    np.testing.assert_array_equal(other.xyxy, found.boxes)
    np.testing.assert_array_equal(other.confidence, found.scores)
    assert other.class_id.tolist() == [1, 0, 1] and other.data["class_name"].tolist() == found.names
    assert other.mask.shape == (3, 40, 60) and detections().to_supervision().mask is None


def test_videos_frame_by_frame(tmp_path, monkeypatch):
    """Ten gray frames, each brighter than the one before; files that are no video."""
    (tmp_path / "text.mp4").write_bytes(b"no video")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", None)
        with pytest.raises(UserError, match=r"videos need av: pip install 'kgarden\[video\]'"):
            next(frames_of(tmp_path / "text.mp4"))
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * n, "uint8"), format="rgb24")
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode())
    with open(tmp_path / "clip.mp4", "rb") as file:
        for source in (tmp_path / "clip.mp4", str(tmp_path / "clip.mp4"), file):
            frames = [(frame.mean(), frame.shape, name) for frame, name in frames_of(source, every=3)]
            np.testing.assert_allclose([mean for mean, *_ in frames], [0, 60, 120, 180], atol=4)
            assert {shape for _, shape, _ in frames} == {(48, 64, 3)}
            assert frames[1][2].endswith(", frame 3")
    with monkeypatch.context() as patch:
        patch.setattr(video, "MAX_PIXELS", 48 * 64 - 1)
        with pytest.raises(UserError, match="clip.mp4: frames of 64x48 px are not supported"):
            next(frames_of(tmp_path / "clip.mp4"))
    for source, words in (
        (tmp_path / "text.mp4", "text.mp4: not a video that FFmpeg reads"),
        (tmp_path / "none.mp4", "none.mp4: no such file"),
        (7, "video: a path is needed, not 7"),
    ):
        with pytest.raises(UserError, match=words):
            next(frames_of(source))


def test_a_file_does_not_lead_to_the_network(tmp_path):
    """A session description, for which FFmpeg would listen on a port until somebody sends."""
    pytest.importorskip("av")
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=x", "c=IN IP4 127.0.0.1", "t=0 0"]
    lines += ["m=video 5004 RTP/AVP 96", "a=rtpmap:96 H264/90000", ""]
    (tmp_path / "clip.mp4").write_bytes("\r\n".join(lines).encode())
    for source in (tmp_path / "clip.mp4", io.BytesIO((tmp_path / "clip.mp4").read_bytes())):
        with pytest.raises(UserError, match="not a video that FFmpeg reads"):
            next(frames_of(source))

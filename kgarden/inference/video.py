"""Video decoding by PyAV, which brings FFmpeg with it: the frames of a file or stream as arrays."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from kgarden.errors import UserError
from kgarden.inference.image_sources import is_url
from kgarden.utils.arguments import path_of
from tfrecords.images import MAX_PIXELS

LOCAL = {"protocol_whitelist": "file"}  # a playlist or session description names other places


def frames_of(source: Any, every: int = 1) -> Iterator[tuple[np.ndarray, str]]:
    """Yields (frame (H, W, 3) uint8 RGB, its name) of a video, in the order in which they are shown.

    Args:
        source: path, address such as rtsp://, or open file. A rotation in its metadata is not applied.
        every:  1: all frames; n: every n-th one, from the first.
    Raises:
        UserError: PyAV is not installed; or there is no such file, it holds no video, its frames are larger
            than images may be, or it is damaged.
    """
    av, name = _pyav(), "the video"
    if not hasattr(source, "read"):
        name = source if is_url(source) else path_of(source, "video")
        if not is_url(source) and not name.is_file():
            raise UserError(f"{name}: no such file")
        source = os.fspath(name)
    options = {} if is_url(source) else LOCAL
    try:
        with av.open(source, options=options) as container:
            if not container.streams.video:
                raise UserError(f"{name}: holds no video")
            for number, frame in enumerate(container.decode(video=0)):
                if frame.width * frame.height > MAX_PIXELS:
                    raise UserError(f"{name}: frames of {frame.width}x{frame.height} px are not supported")
                if number % every == 0:
                    yield frame.to_ndarray(format="rgb24"), f"{name}, frame {number}"
    except av.error.FFmpegError as error:
        raise UserError(f"{name}: not a video that FFmpeg reads ({error.strerror})") from error


def _pyav():
    try:
        return importlib.import_module("av")
    except ModuleNotFoundError as error:
        raise UserError(f"videos need {error.name}: pip install 'kgarden[video]'") from error

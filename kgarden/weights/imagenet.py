"""ImageNet weights of backbones: torchvision's files, found in a cache or fetched by Keras' downloader."""

import hashlib
import os
import pathlib

import keras

from kgarden.errors import UserError

ORIGIN = "https://download.pytorch.org/models/"

# torchvision's IMAGENET1K_V1; the digits are the beginning of the file's SHA-256.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5.pth",
    "resnext101_64x4d": "resnext101_64x4d-173b62eb.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
}


def imagenet_file(backbone: str) -> pathlib.Path:
    """Returns the path of a backbone's ImageNet weights, which are downloaded if no cache has them.

    Args:
        backbone: name in `kgarden.backbones.BACKBONES`.
    Returns:
        path of a .pth file with the digest that its name promises.
    Raises:
        UserError: there is none for this backbone, it cannot be fetched, or the file is damaged.
    """
    if backbone not in FILES:
        raise UserError(
            f"init.weights: imagenet: no file is known for {backbone}, only for {', '.join(FILES)}; "
            f"give a file: init.weights=FILE.pth"
        )
    name = FILES[backbone]
    path = next((folder / name for folder in _caches() if (folder / name).is_file()), None) or _fetch(name)
    digits = path.stem.rpartition("-")[2]
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digits):
        raise UserError(f"{path}: damaged: its SHA-256 does not begin with {digits}; remove it")
    return path


def _caches():
    """Folders in which PyTorch and Keras keep what they have downloaded."""
    torch_home = os.environ.get("TORCH_HOME") or "~/.cache/torch"
    yield pathlib.Path(torch_home).expanduser() / "hub/checkpoints"
    yield _keras_cache()


def _keras_cache():
    return pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"


def _fetch(name):
    try:
        return pathlib.Path(keras.utils.get_file(name, ORIGIN + name, cache_subdir="models"))
    except Exception as error:  # of the network, in whatever form Keras and urllib pass it on
        raise UserError(
            f"init.weights: imagenet: {ORIGIN}{name} cannot be fetched; "
            f"fetch it elsewhere and put it into {_keras_cache()}"
        ) from error

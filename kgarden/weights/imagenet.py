"""ImageNet weights of backbones: files of torchvision and timm, found in a cache or downloaded."""

import hashlib
import importlib.util
import os
import pathlib

import keras

from kgarden.errors import UserError

TORCHVISION = "https://download.pytorch.org/models/"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"

# torchvision's IMAGENET1K_V1, and timm's. The digits are the beginning of the file's SHA-256.
FILES = {
    "resnet18": TORCHVISION + "resnet18-f37072fd.pth",
    "resnet34": TORCHVISION + "resnet34-b627a593.pth",
    "resnet50": TORCHVISION + "resnet50-0676ba61.pth",
    "resnet101": TORCHVISION + "resnet101-63fe2227.pth",
    "resnet152": TORCHVISION + "resnet152-394f9c45.pth",
    "resnext50_32x4d": TORCHVISION + "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d": TORCHVISION + "resnext101_32x8d-8ba56ff5.pth",
    "resnext101_64x4d": TORCHVISION + "resnext101_64x4d-173b62eb.pth",
    "mobilenet_v2": TORCHVISION + "mobilenet_v2-b0353104.pth",
    "resnext101_32x4d": GLUON + "gluon_resnext101_32x4d-b253c8c4.pth",
    "seresnext50_32x4d": TIMM + "legacy_se_resnext50_32x4d-f3651bad.pth",
    "seresnext101_32x4d": TIMM + "legacy_se_resnext101_32x4d-37725eac.pth",
    "senet154": TIMM + "legacy_senet154-e9eb9fe6.pth",
    "efficientnet_lite0": TIMM + "tf_efficientnet_lite0-0aa007d2.pth",
}
# timm's on the Hugging Face Hub, which has its own cache and checks.
HUB = {
    "dla34": "timm/dla34.in1k",
    "res2net50": "timm/res2net50d.in1k",
    "res2net101": "timm/res2net101d.in1k",
}
HUB_FILE = "model.safetensors"


def imagenet_file(backbone: str) -> pathlib.Path:
    """Returns the path of a backbone's ImageNet weights, which are downloaded if no cache has them.

    Args:
        backbone: name in `kgarden.backbones.BACKBONES`.
    Returns:
        path of a file of torchvision or timm with the digest that its name promises.
    Raises:
        UserError: there is none for this backbone, it cannot be fetched, or the file is damaged.
    """
    if backbone in HUB:
        return _from_hub(HUB[backbone])
    if backbone not in FILES:
        raise UserError(
            f"init.weights: imagenet: no file is known for {backbone}, only for {', '.join([*FILES, *HUB])}; "
            f"give a file: init.weights=FILE.pth"
        )
    url = FILES[backbone]
    name = url.rpartition("/")[2]
    path = next((folder / name for folder in _caches() if (folder / name).is_file()), None) or _fetch(url)
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


def _fetch(url):
    try:
        return pathlib.Path(keras.utils.get_file(url.rpartition("/")[2], url, cache_subdir="models"))
    except Exception as error:  # of the network, in whatever form Keras and urllib pass it on
        raise UserError(
            f"init.weights: imagenet: {url} cannot be fetched; "
            f"fetch it elsewhere and put it into {_keras_cache()}"
        ) from error


def _from_hub(repository):
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"init.weights: imagenet: {repository} is on the Hugging Face Hub: pip install 'kgarden[hub]'"
        )
    from huggingface_hub import hf_hub_download

    try:
        return pathlib.Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # of the network, of the cache and of the hub's answers
        raise UserError(
            f"init.weights: imagenet: {HUB_FILE} of {repository} on the Hugging Face Hub cannot be fetched; "
            "fetch it elsewhere and give its path as init.weights"
        ) from error

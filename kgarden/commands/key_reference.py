"""docs/keys.md: the reference of all keys, written by `kgarden recipe keys --markdown docs/keys.md`."""

from collections import Counter

from kgarden.commands.model_keys import model_keys
from kgarden.config.keys import Key, section_keys, transform_keys
from kgarden.models import MODELS

HEAD = """# Keys of a recipe

Written by `kgarden recipe keys --markdown docs/keys.md` from the schema and the docstrings. On the command
line `kgarden recipe keys PREFIX` lists a part of it, `kgarden recipe keys --model centernet2` the settings of
a model with its own defaults, and `--set model.roi_head.name=tsd` beside it those of another part.
"""
OF_TRANSFORMS = """## Augmentation

Settings of the transforms of `augment`, as in `augment: [{mixup: {alpha: 4}}]`.
"""
OF_MODELS = """## Models

The settings of all models with their default parts. Where models differ in a default, theirs follow the usual
one. Another backbone, neck or head has further keys: choose it with `--set`, as above.
"""


def reference() -> str:
    """Returns the text of docs/keys.md."""
    sections = [HEAD + "\n## Sections\n", _table(section_keys())]
    transforms = [OF_TRANSFORMS, _table(transform_keys())]
    return "\n".join([*sections, *transforms, OF_MODELS, _table(merged_keys())])


def _table(keys):
    rows = [
        f"| `{one.key}` | {_cell(one.kind)} | {_code(one.default)} | {_cell(one.meaning)} |\n" for one in keys
    ]
    return "| key | type | default | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text):
    return _cell(text) if text == "required" or not text else f"`{text}`".replace("|", "\\|")


def merged_keys() -> list[Key]:
    """Returns the settings of all models, each key once, with the models whose default is another."""
    found = {}
    for model in MODELS:
        for one in model_keys(model):
            found.setdefault(one.key, {})[model] = one
    return [_merged(key, of_models) for key, of_models in sorted(found.items()) if key != "model.name"]


def _merged(key, of_models):
    defaults = Counter(one.default for one in of_models.values())
    usual = defaults.most_common(1)[0][0]
    others = [
        f"{model}: {one.default or 'a section'}" for model, one in of_models.items() if one.default != usual
    ]
    kinds = Counter(one.kind for one in of_models.values() if one.kind)
    meanings = Counter(one.meaning for one in of_models.values() if one.meaning)
    default = usual + (f" ({'; '.join(others)})" if others else "")
    only = "" if len(of_models) > 3 else f" ({', '.join(of_models)})"
    meaning = meanings.most_common(1)[0][0] if meanings else ""
    return Key(key, kinds.most_common(1)[0][0] if kinds else "", default, f"{meaning}{only}".strip())

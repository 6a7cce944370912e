"""Copy-paste: objects of another image pasted along their masks."""

import tensorflow as tf

from kgarden.data import rng
from kgarden.data.transforms import masks
from kgarden.data.transforms.base import FINISH, Transform, check_part
from kgarden.data.transforms.geometry import FRAMES, IMAGE, hw_of, trimmed
from kgarden.data.transforms.mixing import TRUTH, either, together
from kgarden.structures import BOXES, CROWD, LABELS, MASKS, PAD_LABEL


def copy_paste(probability=0.5, share=0.5, min_visible=0.1):
    """Copy-paste: objects of another image pasted along their masks, at the same position.

    Ghiasi et al. 2021, arXiv:2012.07177, section 3: both images are augmented first (with
    `large_scale_jitter`, if it is in the list), then a random subset of the other's objects is pasted,
    without blending. Occluded pixels are removed from the masks below, boxes shrink to the rest, and objects
    with too small a visible fraction are removed. For objects without a mask the fraction is that of the box,
    which stays. Needs `data.masks`.

    Args:
        probability: of applying it.
        share:       probability of pasting each object of the other image.
        min_visible: pasted or occluded objects with a smaller visible fraction are removed.
    """
    probability = check_part("copy_paste.probability", probability)
    share = check_part("copy_paste.share", share)
    min_visible = check_part("copy_paste.min_visible", min_visible)

    def change(example, seed, partner):
        taken = rng.uniform(seed)[0] < probability

        def pasted():
            other = _on_image(partner(0), hw_of(example), min_visible)
            draws = rng.uniform(rng.fold_in(seed, 0), tf.shape(other[LABELS])[0])
            chosen = (draws < share) & (other[LABELS] >= 0) & ~other[CROWD]
            chosen &= tf.reduce_any(other[MASKS], axis=[1, 2])
            objects = {key: tf.boolean_mask(other[key], chosen) for key in TRUTH}
            over = masks.painted(objects[MASKS], objects[FRAMES], hw_of(example))
            image = tf.where(over[..., None], other[IMAGE], example[IMAGE])
            return together({**example, IMAGE: image}, covered(example, over, min_visible), objects)

        return either(taken, pasted, lambda: example, example)

    return Transform(change, FINISH, partners=1, needs_masks=True)


def covered(example, over, min_visible):
    """An example partly occluded by pasted objects.

    Args:
        over: (H, W) bool, the occluded pixels.
    """
    hidden = masks.seen_at(over, example[FRAMES])
    of_box = masks.seen_at(over, example[BOXES])
    visible = 1 - tf.reduce_mean(tf.cast(of_box, tf.float32), axis=[1, 2])
    boxes, visible = masks.left_of(example, example[MASKS] & ~hidden, example[BOXES], visible)
    stays = (visible >= min_visible) & (visible > 0) | example[CROWD]
    return {
        **example,
        MASKS: tf.where(example[CROWD][:, None, None], example[MASKS], example[MASKS] & ~hidden),
        BOXES: tf.where(example[CROWD][:, None], example[BOXES], boxes),
        LABELS: tf.where(stays, example[LABELS], PAD_LABEL),
    }


def _on_image(other, hw, min_visible):
    """Crop and pad another image to this one's size."""
    image = other[IMAGE][: hw[0], : hw[1]]
    missing = hw - tf.shape(image)[:2]
    other = trimmed(other, min_visible, tf.concat([[0, 0], hw], axis=0))
    return {**other, IMAGE: tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])}

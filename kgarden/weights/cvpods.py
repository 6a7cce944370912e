"""Weight names of cvpods and of DeFCN's release: FCOS and POTO on a backbone and pyramid as detectron2's."""

from kgarden.weights.detectron2 import TRUNK

HEAD = (
    # towers are conv, norm, ReLU in a row
    *[
        entry
        for theirs, ours in (("bbox", "box"), ("cls", "class"))
        for number in range(8)
        for entry in (
            (rf"head\.{theirs}_subnet\.{3 * number}", f"{ours}_tower/conv{number}"),
            (rf"head\.{theirs}_subnet\.{3 * number + 1}", f"{ours}_tower/conv{number}/norm"),
        )
    ],
    (r"head\.cls_score", "classes"),
    (r"head\.bbox_pred", "code"),
    (r"head\.(centerness|filter)", r"\1"),
    (r"head\.max3d\.(conv|norm)", r"max_filter/\1"),
    (r"head\.scales\.(\d+)", r"scales[\1]"),
)

TABLE = (*TRUNK, *HEAD)

IGNORE = (r"pixel_(mean|std)",)

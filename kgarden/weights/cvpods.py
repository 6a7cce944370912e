"""Weight names of cvpods and of DeFCN's release: FCOS and POTO on a backbone and pyramid as detectron2's."""

from kgarden.weights.detectron2 import TRUNK, tower_names

HEAD = (
    *tower_names(r"head\.bbox_subnet\.", "box_tower"),
    *tower_names(r"head\.cls_subnet\.", "class_tower"),
    (r"head\.cls_score", "classes"),
    (r"head\.bbox_pred", "code"),
    (r"head\.(centerness|filter)", r"\1"),
    (r"head\.max3d\.(conv|norm)", r"max_filter/\1"),
    (r"head\.scales\.(\d+)", r"scales[\1]"),
)

TABLE = (*TRUNK, *HEAD)

IGNORE = (r"pixel_(mean|std)",)

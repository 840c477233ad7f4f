"""MyProject: what the idea is."""

from detlib.config import CfgNode

# A part is known by its name once its file has been imported.
from .box_loss import MyProjectBoxLoss
from .detector import MyProjectRetinaNet
from .neck import MyProjectNeck

__all__ = ["MyProjectBoxLoss", "MyProjectNeck", "MyProjectRetinaNet", "add_config"]


def add_config(cfg: CfgNode) -> None:
    """Add the options of what reads the whole config; those of losses and necks are arguments of their classes."""
    cfg.MODEL.MY_PROJECT = CfgNode()
    # Objects whose width or height is not above this many pixels of the network's input are not trained on.
    cfg.MODEL.MY_PROJECT.MIN_OBJECT_SIZE = 2.0

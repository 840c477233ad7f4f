"""How a learning rate compares with those that are published."""

from torch.optim import Optimizer

from detlib.config import CfgNode

__all__ = ["rate_advice"]

# Rates for SGD, and for how many images: those of the authors' recipes, as detectron2 has them, and of arXiv:1706.02677
# for classification.
PUBLISHED_RATES = {
    "GeneralizedRCNN": (0.02, 16),
    "ProposalNetwork": (0.02, 16),
    "PanopticFPN": (0.02, 16),
    "RetinaNet": (0.01, 16),
    "FCOS": (0.01, 16),
    "ImageClassifier": (0.1, 256),
}


def rate_advice(cfg: CfgNode, optimizer: Optimizer) -> str:
    """Compares the rate with the published one for as large a batch.

    The linear rule (arXiv:1706.02677) is about SGD, and the published rates are for COCO and ImageNet, so that it is
    not more than a hint.
    """
    solver = cfg.SOLVER
    current = max(group["lr"] for group in optimizer.param_groups)
    text = (
        f"Learning rate: {current:.4g} in this step; SOLVER.BASE_LR is {solver.BASE_LR:.4g} at SOLVER.IMS_PER_BATCH "
        f"{solver.IMS_PER_BATCH}, with {solver.WARMUP_ITERS} iterations of warm-up"
    )
    architecture = cfg.MODEL.META_ARCHITECTURE
    if solver.OPTIMIZER != "SGD" or architecture not in PUBLISHED_RATES:
        return (
            f"{text}. There is no published rate to compare it with for {architecture} and {solver.OPTIMIZER}: if the "
            f"data is sound, try SOLVER.BASE_LR {solver.BASE_LR / 10:.4g} or a longer warm-up"
        )
    rate, num_images = PUBLISHED_RATES[architecture]
    suggested = rate * solver.IMS_PER_BATCH / num_images
    text += (
        f". Published recipes of {architecture} take {rate} for {num_images} images, which the linear rule "
        f"(arXiv:1706.02677) makes {suggested:.4g} for {solver.IMS_PER_BATCH}; yours is "
        f"{solver.BASE_LR / suggested:.3g} times that"
    )
    if suggested < solver.BASE_LR:
        return f"{text}. If the data is sound, try SOLVER.BASE_LR {suggested:.4g}, or a longer warm-up"
    return f"{text}, so look at the data and the precision first, then at the warm-up (SOLVER.WARMUP_ITERS)"

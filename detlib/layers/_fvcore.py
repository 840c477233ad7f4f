"""What layers take from ``fvcore.nn``, imported without the warning that it causes.

fvcore scripts a loss when it is imported, and torch deprecates scripting.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import sigmoid_focal_loss, smooth_l1_loss, weight_init
    from fvcore.nn.distributed import differentiable_all_reduce

__all__ = ["differentiable_all_reduce", "sigmoid_focal_loss", "smooth_l1_loss", "weight_init"]

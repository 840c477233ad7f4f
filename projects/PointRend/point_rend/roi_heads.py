"""ROI heads that leave it to the mask head where to look at the feature maps."""

import re
from typing import Any

from detlib.config import CfgNode
from detlib.layers import ShapeSpec
from detlib.modeling import ROI_HEADS_REGISTRY, StandardROIHeads, build_mask_head

__all__ = ["PointRendROIHeads"]

# Names in the weights that were published first, when both parts of the mask head belonged to the ROI heads.
_OLD_NAMES = (
    (re.compile(r"^mask_coarse_head\.(?:coarse_mask_(?=fc))?"), "mask_head.coarse_head."),
    (re.compile(r"^mask_point_head\."), "mask_head.point_head."),
)


@ROI_HEADS_REGISTRY.register()
class PointRendROIHeads(StandardROIHeads):
    """:class:`StandardROIHeads` whose mask head takes whole feature maps; it also loads weights with older names."""

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        # All maps are offered, as the finest is often among those of the mask head only.
        return {
            "mask_in_features": list(input_shape),
            "mask_pooler": None,
            "mask_head": build_mask_head(cfg, input_shape),
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith(prefix)]:
            for pattern, replacement in _OLD_NAMES:
                renamed = prefix + pattern.sub(replacement, name.removeprefix(prefix))
                if renamed != name:
                    state_dict[renamed] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""Who is who: identities of detections, once it is known which of them continue which of the frame before."""

from dataclasses import dataclass, field

from detlib.structures import Instances

__all__ = ["Identities"]


@dataclass
class Identities:
    """Numbers objects, and keeps those that are not detected for a while.

    Args:
        video_height: of all frames, in pixels.
        video_width: likewise.
        max_num_instances: no lost object is kept beyond this many objects in a frame.
        max_lost_frame_count: consecutive frames for which an object that is not detected is kept; 0 keeps none.
        min_box_rel_dim: lost objects that are smaller, relative to the side of the frame, are dropped.
        min_instance_period: lost objects that were detected in no more frames than this are dropped.
    """

    video_height: int
    video_width: int
    max_num_instances: int
    max_lost_frame_count: int
    min_box_rel_dim: float
    min_instance_period: int
    next_id: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.video_height <= 0 or self.video_width <= 0:
            raise ValueError(
                f"a tracker needs the size of the video, got {self.video_height} x {self.video_width}; "
                "pass video_height and video_width, or set TRACKER_HEADS.VIDEO_HEIGHT and VIDEO_WIDTH"
            )

    def assign(self, instances: Instances, previous: Instances | None, matches: dict[int, int]) -> Instances:
        """Return the detections with three lists more, followed by the objects that are lost but not given up.

        "ID" numbers objects in the order of their appearance, "ID_period" counts the frames in which each was detected,
        "lost_frame_count" those for which it has been missing.

        Args:
            instances: detections of this frame.
            previous: what this function returned for the frame before; None for the first.
            matches: detection -> object of the frame before.
        """
        count = len(instances)
        new = [i for i in range(count) if i not in matches]
        ids = dict(zip(new, range(self.next_id, self.next_id + len(new)), strict=True))
        self.next_id += len(new)
        periods = dict.fromkeys(new, 1)
        for i, j in matches.items():
            ids[i] = previous.ID[j]
            periods[i] = previous.ID_period[j] + 1
        named = Instances(instances.image_size, **instances.get_fields())
        named.set("ID", [ids[i] for i in range(count)])
        named.set("ID_period", [periods[i] for i in range(count)])
        named.set("lost_frame_count", [0] * count)
        if previous is None:
            return named
        lost = self._lost(previous, set(matches.values()))[: max(self.max_num_instances - count, 0)]
        return Instances.cat([named, _like(named, previous[lost])]) if lost else named

    def _lost(self, previous: Instances, found: set[int]) -> list[int]:
        """Objects that were not found but are kept, those that were seen last first; counts their further frame."""
        box_sizes = previous.pred_boxes.tensor[:, 2:] - previous.pred_boxes.tensor[:, :2]  # (N, 2)
        relative = box_sizes / box_sizes.new_tensor([self.video_width, self.video_height])
        large = (relative >= self.min_box_rel_dim).all(dim=1).tolist()
        kept = [
            j
            for j in range(len(previous))
            if j not in found
            and large[j]
            and previous.lost_frame_count[j] < self.max_lost_frame_count
            and previous.ID_period[j] > self.min_instance_period
        ]
        return sorted(kept, key=lambda j: previous.lost_frame_count[j])


def _like(named: Instances, lost: Instances) -> Instances:
    """Lost objects with the fields and on the device of the detections, missing for one frame more."""
    fields = lost.to(named.pred_boxes.device).get_fields()
    missing = named.get_fields().keys() - fields.keys()
    if missing:
        raise ValueError(
            f"this frame has the fields {', '.join(sorted(missing))}, which the frame before lacks; "
            "pass the same fields for every frame"
        )
    fields = fields | {"lost_frame_count": [count + 1 for count in lost.lost_frame_count]}
    return Instances(named.image_size, **{name: fields[name] for name in named.get_fields()})

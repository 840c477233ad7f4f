"""Run the unit cases (units/*.json + units/*.npz) against a package, detlib or another with the same public names.

Each function below makes the calls of one file of cases: it takes the package's name, a
case's `params` (from the json file) and its input arrays (from the npz file), and returns
the output arrays. Only public names of the package are used.
"""

import copy
import importlib
import json
import os
import tempfile

import numpy as np


def get(package, dotted):
    module, name = (package + "." + dotted).rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def t(x):
    import torch

    return torch.from_numpy(np.array(x))


def n(x):
    if hasattr(x, "tensor"):
        x = x.tensor
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    return np.asarray(x)


UNITS = {}


def unit(f):
    UNITS[f.__name__] = f
    return f


def instances(package, size, **fields):
    inst = get(package, "structures.Instances")(tuple(size))
    for k, v in fields.items():
        inst.set(k, v)
    return inst


def boxes(package, x):
    return get(package, "structures.Boxes")(t(x))


def rotated(package, x):
    return get(package, "structures.RotatedBoxes")(t(x))


def storage(package):
    return get(package, "utils.events.EventStorage")(0)


def polygons(x, name="polygon"):
    """Per instance, a list of flat float64 polygons."""
    owner_size = x[name + "_owner_and_size"]
    out = [[] for _ in range(int(owner_size[:, 0].max()) + 1)]
    at = 0
    for owner, size in owner_size:
        out[int(owner)].append(x[name + "_points"][at : at + int(size)].astype(np.float64))
        at += int(size)
    return out


def box_transform(package, weights, **kwargs):
    name = "Box2BoxTransform" if len(weights) == 4 else "Box2BoxTransformRotated"
    return get(package, "modeling.box_regression." + name)(weights=tuple(weights), **kwargs)


# ------------------------------------------------------------------ anchors and transforms


@unit
def anchors(package, p, x):
    import torch

    kwargs = {k: p[k] for k in ("sizes", "aspect_ratios", "strides", "offset", "angles") if k in p}
    name = "RotatedAnchorGenerator" if "angles" in p else "DefaultAnchorGenerator"
    g = get(package, "modeling.anchor_generator." + name)(**kwargs)
    out = {"num_anchors": np.array(g.num_anchors, np.int64)}
    for i, a in enumerate(g([torch.zeros(1, 1, h, w) for h, w in p["grids"]])):
        out["anchors%d" % i] = n(a)
    return out


@unit
def box_regression(package, p, x):
    kwargs = {"scale_clamp": p["scale_clamp"]} if "scale_clamp" in p else {}
    tr = box_transform(package, p["weights"], **kwargs)
    return {
        "get_deltas": n(tr.get_deltas(t(x["src"]), t(x["target"]))),
        "apply_deltas": n(tr.apply_deltas(t(x["deltas"]), t(x["src"]))),
    }


@unit
def box_regression_linear(package, p, x):
    tr = get(package, "modeling.box_regression.Box2BoxTransformLinear")(normalize_by_size=p["normalize_by_size"])
    return {
        "get_deltas": n(tr.get_deltas(t(x["src"]), t(x["target"]))),
        "apply_deltas": n(tr.apply_deltas(t(x["deltas"]), t(x["src"]))),
    }


@unit
def matcher(package, p, x):
    m = get(package, "modeling.matcher.Matcher")(
        p["thresholds"], p["labels"], allow_low_quality_matches=p["allow_low_quality_matches"]
    )
    matches, labels = m(t(x["quality"]))
    return {"matches": n(matches), "labels": n(labels)}


@unit
def subsample_labels(package, p, x):
    labels = t(x["labels"])
    pos, neg = get(package, "modeling.sampling.subsample_labels")(
        labels, p["num_samples"], p["positive_fraction"], p["bg_label"]
    )
    pos, neg = n(pos), n(neg)
    lab = x["labels"]
    ok = (
        len(set(pos.tolist())) == len(pos)
        and len(set(neg.tolist())) == len(neg)
        and bool(np.all((lab[pos] != -1) & (lab[pos] != p["bg_label"])))
        and bool(np.all(lab[neg] == p["bg_label"]))
    )
    return {"counts": np.array([len(pos), len(neg)]), "valid": np.array([ok])}


# ------------------------------------------------------------------ boxes


@unit
def boxes_pairwise(package, p, x):
    a, b = boxes(package, x["a"]), boxes(package, x["b"])
    k = min(len(a), len(b))
    return {
        "iou": n(get(package, "structures.pairwise_iou")(a, b)),
        "ioa": n(get(package, "structures.pairwise_ioa")(a, b)),
        "intersection": n(get(package, "structures.boxes.pairwise_intersection")(a, b)),
        "matched_iou": n(get(package, "structures.boxes.matched_pairwise_iou")(a[:k], b[:k])),
        "point_distance": n(get(package, "structures.pairwise_point_box_distance")(t(x["points"]), b)),
    }


@unit
def boxes_methods(package, p, x):
    size = tuple(p["size"])
    b = boxes(package, x["boxes"])
    out = {"area": n(b.area()), "centers": n(b.get_centers())}
    out["inside"] = n(b.inside_box(size, p["boundary"]))
    b.clip(size)
    out["clip"] = n(b)
    out["nonempty"] = n(b.nonempty(threshold=p["threshold"]))
    b.scale(*p["scale"])
    out["scale"] = n(b)
    return out


@unit
def rotated_boxes(package, p, x):
    size = tuple(p["size"])
    iou = get(package, "layers.rotated_boxes.pairwise_iou_rotated")
    a, b = rotated(package, x["a"]), rotated(package, x["b"])
    out = {
        "iou": n(iou(t(x["a"]), t(x["b"]))),
        "iou_structures": n(get(package, "structures.pairwise_iou_rotated")(a, b)),
        "area": n(a.area()),
        "inside": n(a.inside_box(size, p["boundary"])),
    }
    c = rotated(package, x["a"])
    c.normalize_angles()
    out["normalize"] = n(c)
    c = rotated(package, x["a"])
    c.clip(size)
    out["clip"] = n(c)
    c = rotated(package, x["a"])
    c.scale(*p["scale"])
    out["scale"] = n(c)
    return out


@unit
def box_mode(package, p, x):
    mode = get(package, "structures.BoxMode")
    a, b = mode[p["from"]], mode[p["to"]]
    out = {"array": n(mode.convert(np.array(x["boxes"]), a, b))}
    out["tensor"] = n(mode.convert(t(x["boxes"]), a, b))
    out["list"] = np.array([mode.convert(list(map(float, r)), a, b) for r in x["boxes"]])
    return out


@unit
def nms(package, p, x):
    out = {
        "nms": n(get(package, "layers.nms")(t(x["boxes"]), t(x["scores"]), p["threshold"])),
        "batched": n(get(package, "layers.batched_nms")(t(x["boxes"]), t(x["scores"]), t(x["groups"]), p["threshold"])),
    }
    return out


@unit
def nms_rotated(package, p, x):
    return {
        "nms": n(get(package, "layers.nms_rotated")(t(x["boxes"]), t(x["scores"]), p["threshold"])),
        "batched": n(
            get(package, "layers.batched_nms_rotated")(t(x["boxes"]), t(x["scores"]), t(x["groups"]), p["threshold"])
        ),
    }


# ------------------------------------------------------------------ losses


def loss_function(package, name):
    for module in (package + ".layers", package + ".layers.losses", "fvcore.nn"):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            pass
    raise AttributeError("no function " + name)


@unit
def losses(package, p, x):
    """Each elementary loss. Where the function lives is free; its arguments are in params."""
    import torch

    f = loss_function(package, p["function"])
    pred = t(x["pred"]).requires_grad_(True)
    value = f(pred, t(x["target"]), **p["kwargs"])
    (grad,) = torch.autograd.grad(value.sum(), pred)
    return {"loss": n(value), "grad": n(grad)}


def dense_parts(package, p, x):
    """A backbone and a head that return the stored arrays, whatever the image is."""
    import torch

    Backbone = get(package, "modeling.backbone.Backbone")
    ShapeSpec = get(package, "layers.ShapeSpec")
    names = ["f%d" % i for i in range(len(p["strides"]))]

    class Features(Backbone):
        def __init__(self):
            super().__init__()
            self.dummy = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            count = images.shape[0]
            return {k: torch.zeros(count, 1, h, w) for k, (h, w) in zip(names, p["grids"])}

        def output_shape(self):
            return {k: ShapeSpec(channels=1, stride=s) for k, s in zip(names, p["strides"])}

    class Head(torch.nn.Module):
        def forward(self, features):
            groups = []
            for prefix in p["head_outputs"]:
                groups.append([t(x["%s%d" % (prefix, i)]) for i in range(len(names))])
            return tuple(groups)

    return Features(), Head(), names


def dense_run(package, p, x, model):
    import torch

    count = len(p["image_sizes"])
    batch = []
    for i in range(count):
        h, w = p["image_sizes"][i]
        gt = instances(
            package,
            (h, w),
            gt_boxes=boxes(package, x["gt_boxes%d" % i]),
            gt_classes=t(x["gt_classes%d" % i]),
        )
        batch.append({"image": torch.zeros(3, h, w, dtype=torch.uint8), "instances": gt})
    out = {}
    model.train()
    with storage(package):
        for step in range(2):  # the loss normalizer is a moving average
            for k, v in model(copy.deepcopy(batch)).items():
                out["step%d/%s" % (step, k)] = n(v)
    model.eval()
    with torch.no_grad():
        for i, r in enumerate(model(batch)):
            r = r["instances"]
            out["boxes%d" % i], out["scores%d" % i] = n(r.pred_boxes), n(r.scores)
            out["classes%d" % i] = n(r.pred_classes)
    return out


@unit
def retinanet(package, p, x):
    backbone, head, names = dense_parts(package, p, x)
    model = get(package, "modeling.meta_arch.retinanet.RetinaNet")(
        backbone=backbone,
        head=head,
        head_in_features=names,
        anchor_generator=get(package, "modeling.anchor_generator.DefaultAnchorGenerator")(
            sizes=p["sizes"],
            aspect_ratios=p["aspect_ratios"],
            strides=p["strides"],
            offset=p["offset"],
        ),
        box2box_transform=box_transform(package, p["weights"]),
        anchor_matcher=get(package, "modeling.matcher.Matcher")(
            p["thresholds"], p["labels"], allow_low_quality_matches=True
        ),
        num_classes=p["num_classes"],
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
        **p["kwargs"],
    )
    return dense_run(package, p, x, model)


@unit
def fcos(package, p, x):
    backbone, head, names = dense_parts(package, p, x)
    model = get(package, "modeling.meta_arch.fcos.FCOS")(
        backbone=backbone,
        head=head,
        head_in_features=names,
        num_classes=p["num_classes"],
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
        **p["kwargs"],
    )
    return dense_run(package, p, x, model)


@unit
def rpn(package, p, x):
    import torch

    _, head, names = dense_parts(package, p, x)
    model = get(package, "modeling.proposal_generator.RPN")(
        in_features=names,
        head=head,
        anchor_generator=get(package, "modeling.anchor_generator.DefaultAnchorGenerator")(
            sizes=p["sizes"],
            aspect_ratios=p["aspect_ratios"],
            strides=p["strides"],
            offset=p["offset"],
        ),
        anchor_matcher=get(package, "modeling.matcher.Matcher")(
            p["thresholds"], p["labels"], allow_low_quality_matches=True
        ),
        box2box_transform=box_transform(package, p["weights"]),
        **p["kwargs"],
    )
    count = len(p["image_sizes"])
    sizes = [tuple(s) for s in p["image_sizes"]]
    h, w = max(s[0] for s in sizes), max(s[1] for s in sizes)
    images = get(package, "structures.ImageList")(torch.zeros(count, 3, h, w), sizes)
    features = {k: torch.zeros(count, 1, *g) for k, g in zip(names, p["grids"])}
    gt = [instances(package, sizes[i], gt_boxes=boxes(package, x["gt_boxes%d" % i])) for i in range(count)]
    out = {}
    for mode in ("train", "eval"):
        model.train(mode == "train")
        with storage(package), torch.no_grad():
            proposals, found = model(images, features, gt if mode == "train" else None)
        for k, v in (found or {}).items():
            out[k] = n(v)
        for i, q in enumerate(proposals):
            out["%s/boxes%d" % (mode, i)] = n(q.proposal_boxes)
            out["%s/logits%d" % (mode, i)] = n(q.objectness_logits)
    return out


@unit
def find_top_rpn_proposals(package, p, x):
    f = get(package, "modeling.proposal_generator.proposal_utils.find_top_rpn_proposals")
    levels = p["levels"]
    got = f(
        [t(x["proposals%d" % i]) for i in range(levels)],
        [t(x["logits%d" % i]) for i in range(levels)],
        [tuple(s) for s in p["image_sizes"]],
        p["nms_thresh"],
        p["pre_nms_topk"],
        p["post_nms_topk"],
        p["min_box_size"],
        p["training"],
    )
    out = {}
    for i, q in enumerate(got):
        out["boxes%d" % i], out["logits%d" % i] = n(q.proposal_boxes), n(q.objectness_logits)
    return out


# ------------------------------------------------------------------ box, mask, keypoint heads


@unit
def fast_rcnn_output_layers(package, p, x):
    import torch

    layer = get(package, "modeling.roi_heads.fast_rcnn.FastRCNNOutputLayers")(
        get(package, "layers.ShapeSpec")(channels=x["features"].shape[1]),
        box2box_transform=box_transform(package, p["weights"]),
        num_classes=p["num_classes"],
        **p["kwargs"],
    )
    layer.load_state_dict(
        {
            "cls_score.weight": t(x["cls_weight"]),
            "cls_score.bias": t(x["cls_bias"]),
            "bbox_pred.weight": t(x["box_weight"]),
            "bbox_pred.bias": t(x["box_bias"]),
        }
    )
    pred = layer(t(x["features"]))
    out = {"scores": n(pred[0]), "deltas": n(pred[1])}
    props = []
    for i, size in enumerate(p["image_sizes"]):
        props.append(
            instances(
                package,
                size,
                proposal_boxes=boxes(package, x["proposals%d" % i]),
                gt_boxes=boxes(package, x["gt_boxes%d" % i]),
                gt_classes=t(x["gt_classes%d" % i]),
            )
        )
    with storage(package):
        for k, v in layer.losses(pred, props).items():
            out[k] = n(v)
    with torch.no_grad():
        results, kept = layer.inference(pred, props)
    for i, (r, k) in enumerate(zip(results, kept)):
        out["boxes%d" % i], out["det_scores%d" % i] = n(r.pred_boxes), n(r.scores)
        out["classes%d" % i], out["kept%d" % i] = n(r.pred_classes), n(k)
    return out


@unit
def fast_rcnn_inference(package, p, x):
    results, kept = get(package, "modeling.roi_heads.fast_rcnn.fast_rcnn_inference")(
        [t(x["boxes"])],
        [t(x["scores"])],
        [tuple(p["image_size"])],
        p["score_thresh"],
        p["nms_thresh"],
        p["topk_per_image"],
    )
    r = results[0]
    return {
        "pred_boxes": n(r.pred_boxes),
        "pred_scores": n(r.scores),
        "pred_classes": n(r.pred_classes),
        "kept": n(kept[0]),
    }


@unit
def mask_head(package, p, x):
    """mask_rcnn_loss and mask_rcnn_inference on given logits."""
    if p["mask_format"] == "polygon":
        masks = get(package, "structures.PolygonMasks")(polygons(x))
    else:
        masks = get(package, "structures.BitMasks")(t(x["bitmasks"]).bool())
    inst = instances(
        package,
        p["image_size"],
        proposal_boxes=boxes(package, x["boxes"]),
        gt_classes=t(x["classes"]),
        gt_masks=masks,
    )
    logits = t(x["logits"])
    with storage(package):
        loss = get(package, "modeling.roi_heads.mask_head.mask_rcnn_loss")(logits, [inst])
    pred = instances(
        package,
        p["image_size"],
        pred_boxes=boxes(package, x["boxes"]),
        pred_classes=t(x["classes"]),
    )
    get(package, "modeling.roi_heads.mask_head.mask_rcnn_inference")(logits, [pred])
    return {"loss": n(loss), "pred_masks": n(pred.pred_masks)}


@unit
def keypoint_head(package, p, x):
    """The loss and the inference of a keypoint head whose layers return the given logits."""
    import torch

    Base = get(package, "modeling.roi_heads.keypoint_head.BaseKeypointRCNNHead")

    class Head(Base):
        def layers(self, y):
            return y

    head = Head(num_keypoints=x["logits"].shape[1], **p["kwargs"])
    Keypoints = get(package, "structures.Keypoints")
    inst = instances(
        package,
        p["image_size"],
        proposal_boxes=boxes(package, x["boxes"]),
        gt_keypoints=Keypoints(x["keypoints"]),
    )
    head.train()
    with storage(package):
        loss = head(t(x["logits"]), [inst])["loss_keypoint"]
    pred = instances(package, p["image_size"], pred_boxes=boxes(package, x["boxes"]))
    head.eval()
    with torch.no_grad():
        head(t(x["logits"]), [pred])
    heat, valid = Keypoints(x["keypoints"]).to_heatmap(t(x["boxes"]), x["logits"].shape[2])
    return {
        "loss": n(loss),
        "pred_keypoints": n(pred.pred_keypoints),
        "heatmap_index": n(heat) * n(valid),
        "heatmap_valid": n(valid).astype(np.int64),
    }


@unit
def heatmaps_to_keypoints(package, p, x):
    f = get(package, "structures.heatmaps_to_keypoints")
    return {"keypoints": n(f(t(x["maps"]), t(x["rois"])))}


@unit
def paste_masks(package, p, x):
    got = get(package, "layers.paste_masks_in_image")(
        t(x["masks"]), boxes(package, x["boxes"]), tuple(p["image_shape"]), threshold=p["threshold"]
    )
    return {"pasted": n(got).astype(np.uint8)}


# ------------------------------------------------------------------ pooling


@unit
def roi_align(package, p, x):
    import torch

    name = "ROIAlignRotated" if p["rotated"] else "ROIAlign"
    kwargs = {} if p["rotated"] else {"aligned": p["aligned"]}
    op = get(package, "layers." + name)(
        tuple(p["output_size"]),
        spatial_scale=p["spatial_scale"],
        sampling_ratio=p["sampling_ratio"],
        **kwargs,
    )
    features = t(x["features"]).requires_grad_(True)
    y = op(features, t(x["rois"]))
    out = {"output": n(y)}
    if p["grad"]:
        (g,) = torch.autograd.grad((y * t(x["cotangent"])).sum(), features)
        out["grad"] = n(g)
    return out


@unit
def roi_pooler(package, p, x):
    """With features that are constant on each level, the output names the level used."""
    import torch

    pooler = get(package, "modeling.poolers.ROIPooler")(
        output_size=p["output_size"],
        scales=tuple(p["scales"]),
        sampling_ratio=p["sampling_ratio"],
        pooler_type=p["pooler_type"],
        **p["kwargs"],
    )
    make = rotated if p["pooler_type"] == "ROIAlignRotated" else boxes
    lists = [make(package, x["boxes%d" % i]) for i in range(p["images"])]
    h, w = p["image_size"]
    levels = [
        torch.full((p["images"], 1, int(np.ceil(h * s)), int(np.ceil(w * s))), float(i))
        for i, s in enumerate(p["scales"])
    ]
    out = {"level": n(pooler(levels, lists))[:, 0].reshape(sum(len(b) for b in lists), -1).max(1)}
    if "features0" in x:
        features = [t(x["features%d" % i]) for i in range(len(p["scales"]))]
        out["output"] = n(pooler(features, lists))
    return out


# ------------------------------------------------------------------ post-processing


@unit
def detector_postprocess(package, p, x):
    fields = {
        "pred_boxes": boxes(package, x["boxes"]),
        "scores": t(x["scores"]),
        "pred_classes": t(x["classes"]),
    }
    if "masks" in x:
        fields["pred_masks"] = t(x["masks"])
    if "keypoints" in x:
        fields["pred_keypoints"] = t(x["keypoints"])
    inst = instances(package, p["image_size"], **fields)
    kwargs = {"mask_threshold": p["mask_threshold"]} if "mask_threshold" in p else {}
    r = get(package, "modeling.postprocessing.detector_postprocess")(
        inst, p["output_height"], p["output_width"], **kwargs
    )
    out = {"pred_boxes": n(r.pred_boxes), "pred_scores": n(r.scores)}
    out["size"] = np.array(r.image_size)
    if "masks" in x:
        out["pred_masks"] = n(r.pred_masks).astype(np.uint8)
    if "keypoints" in x:
        out["pred_keypoints"] = n(r.pred_keypoints)
    return out


@unit
def sem_seg_postprocess(package, p, x):
    f = get(package, "modeling.postprocessing.sem_seg_postprocess")
    r = f(t(x["logits"]), tuple(p["image_size"]), p["output_height"], p["output_width"])
    return {"output": n(r)}


@unit
def panoptic(package, p, x):
    """PanopticFPN whose parts return the given detections and semantic logits."""
    import torch

    Backbone = get(package, "modeling.backbone.Backbone")
    size = tuple(p["image_size"])

    class Features(Backbone):
        def forward(self, images):
            return {"f": images}

    class SemSeg(torch.nn.Module):
        def forward(self, features, targets=None):
            return t(x["semantic"])[None], {}

    class Proposals(torch.nn.Module):
        def forward(self, images, features, gt_instances=None):
            return [instances(package, size)], {}

    class Heads(torch.nn.Module):
        def forward(self, images, features, proposals, targets=None):
            inst = instances(
                package,
                size,
                pred_boxes=boxes(package, x["boxes"]),
                scores=t(x["scores"]),
                pred_classes=t(x["classes"]),
                pred_masks=t(x["masks"]),
            )
            return [inst], {}

    model = get(package, "modeling.PanopticFPN")(
        backbone=Features(),
        sem_seg_head=SemSeg(),
        proposal_generator=Proposals(),
        roi_heads=Heads(),
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
        **p["kwargs"],
    )
    model.eval()
    with torch.no_grad():
        image = torch.zeros(3, *size, dtype=torch.uint8)
        seg, info = model([{"image": image, "height": p["height"], "width": p["width"]}])[0]["panoptic_seg"]
    rows = [[s["id"], int(s["isthing"]), s["category_id"]] for s in info]
    return {"panoptic": n(seg), "segments": np.array(rows, np.int64).reshape(-1, 3)}


# ------------------------------------------------------------------ masks


@unit
def polygon_masks(package, p, x):
    polys = polygons(x)
    h, w = p["image_size"]
    out = {
        "bitmasks": np.stack([get(package, "structures.polygons_to_bitmask")(q, h, w) for q in polys]).astype(np.uint8)
    }
    f = get(package, "structures.masks.rasterize_polygons_within_box")
    out["within_box"] = np.stack(
        [n(f(q, b, p["mask_size"])) for q, b in zip(polys, x["boxes"].astype(np.float64))]
    ).astype(np.uint8)
    m = get(package, "structures.PolygonMasks")(polys)
    out["area"] = n(m.area())
    out["bounding_boxes"] = n(m.get_bounding_boxes())
    out["crop"] = n(m.crop_and_resize(t(x["boxes"]), p["mask_size"])).astype(np.uint8)
    BitMasks = get(package, "structures.BitMasks")
    bits = BitMasks(t(out["bitmasks"]).bool())
    out["bit_crop"] = n(bits.crop_and_resize(t(x["boxes"]), p["mask_size"])).astype(np.uint8)
    out["bit_bounding_boxes"] = n(bits.get_bounding_boxes())
    return out


@unit
def roi_masks(package, p, x):
    m = get(package, "structures.ROIMasks")(t(x["masks"]))
    got = m.to_bitmasks(boxes(package, x["boxes"]), *p["image_size"], p["threshold"])
    return {"bitmasks": n(got).astype(np.uint8)}


# ------------------------------------------------------------------ data


@unit
def resize_shortest_edge(package, p, x):
    Aug = get(package, "data.transforms.ResizeShortestEdge")
    out = []
    for h, w, size, max_size in x["cases"].tolist():
        image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (h, w, 3))
        tr = Aug([size], max_size, sample_style="choice").get_transform(image)
        got = Aug.get_output_shape(h, w, size, max_size)
        if (tr.new_h, tr.new_w) != tuple(got):
            raise AssertionError("get_transform and get_output_shape disagree")
        out.append(list(got))
    return {"shapes": np.array(out)}


def make_transform(package, spec):
    name, args = spec
    if name == "TransformList":
        return get(package, "data.transforms.TransformList")([make_transform(package, s) for s in args])
    if name in ("ResizeShortestEdge", "RandomFlip", "Resize", "FixedSizeCrop"):
        raise ValueError(name)
    return get(package, "data.transforms." + name)(*args)


@unit
def transforms(package, p, x):
    tr = make_transform(package, p["transform"])
    image = x["image"]
    out = {"image": n(tr.apply_image(image.copy()))}
    if p.get("float_image"):
        out["float_image"] = n(tr.apply_image(image.astype(np.float32)))
    out["coords"] = n(tr.apply_coords(x["coords"].astype(np.float64)))
    out["boxes"] = n(tr.apply_box(x["boxes"].astype(np.float64)))
    out["segmentation"] = n(tr.apply_segmentation(x["segmentation"].copy()))
    got = tr.apply_polygons([q.reshape(-1, 2).astype(np.float64) for q in x["polygon"]])
    for i, q in enumerate(got):
        out["polygon%d" % i] = n(q)
    if p.get("inverse"):
        inv = tr.inverse()
        out["inverse_coords"] = n(inv.apply_coords(n(out["coords"]).astype(np.float64).copy()))
    return out


@unit
def augmentations(package, p, x):
    """Augmentations whose outcome is certain, applied through AugInput."""
    T = importlib.import_module(package + ".data.transforms")
    augs = [getattr(T, name)(*args, **kwargs) for name, args, kwargs in p["augmentations"]]
    inp = T.AugInput(x["image"].copy(), boxes=x["boxes"].astype(np.float64), sem_seg=x["segmentation"].copy())
    tr = T.AugmentationList(augs)(inp)
    return {
        "image": n(inp.image),
        "boxes": n(inp.boxes),
        "sem_seg": n(inp.sem_seg),
        "coords": n(tr.apply_coords(x["coords"].astype(np.float64))),
    }


@unit
def annotations(package, p, x):
    """transform_instance_annotations, then annotations_to_instances."""
    U = importlib.import_module(package + ".data.detection_utils")
    mode = get(package, "structures.BoxMode")
    tr = make_transform(package, p["transform"])
    size = tuple(p["output_size"])
    annos = []
    for a in p["annotations"]:
        a = dict(a, bbox_mode=mode[a["bbox_mode"]])
        annos.append(U.transform_instance_annotations(a, tr, size, keypoint_hflip_indices=np.array(p["flip_indices"])))
    inst = U.annotations_to_instances(annos, size, mask_format=p["mask_format"])
    out = {"gt_boxes": n(inst.gt_boxes), "gt_classes": n(inst.gt_classes)}
    out["gt_keypoints"] = n(inst.gt_keypoints)
    if p["mask_format"] == "polygon":
        out["mask_area"] = n(inst.gt_masks.area())
    else:
        out["bitmasks"] = n(inst.gt_masks).astype(np.uint8)
    _kept, mask = U.filter_empty_instances(inst, return_mask=True)
    out["kept"] = n(mask)
    return out


# ------------------------------------------------------------------ small layers


@unit
def frozen_batch_norm(package, p, x):
    import torch

    m = get(package, "layers.FrozenBatchNorm2d")(x["input"].shape[1], eps=p["eps"])
    keys = ("weight", "bias", "running_mean", "running_var")
    state = m.state_dict()
    state.update({k: t(x[k]) for k in keys})
    m.load_state_dict(state)
    y = t(x["input"])
    grad_in = t(x["input"]).requires_grad_(True)
    z = m(grad_in)
    (g,) = torch.autograd.grad(z.sum(), grad_in)
    with torch.no_grad():
        return {"output": n(m(y)), "grad": n(g)}


@unit
def image_list(package, p, x):
    tensors = [t(x["image%d" % i]) for i in range(p["images"])]
    il = get(package, "structures.ImageList").from_tensors(
        tensors,
        p["size_divisibility"],
        pad_value=p["pad_value"],
        padding_constraints=p["padding_constraints"],
    )
    return {"tensor": n(il.tensor), "sizes": np.array([list(s) for s in il.image_sizes])}


@unit
def deform_conv(package, p, x):
    layer = get(package, "layers.DeformConv")(
        x["input"].shape[1],
        x["weight"].shape[0],
        kernel_size=x["weight"].shape[2],
        bias=False,
        stride=p["stride"],
        padding=p["padding"],
        dilation=p["dilation"],
    )
    layer.load_state_dict({"weight": t(x["weight"])})
    return {"output": n(layer(t(x["input"]), t(x["offset"])))}


# ------------------------------------------------------------------ solver


@unit
def lr_schedule(package, p, x):
    import torch

    cfg = get(package, "config.get_cfg")()
    cfg.merge_from_list(p["overrides"])
    param = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([param], lr=cfg.SOLVER.BASE_LR)
    sched = get(package, "solver.build_lr_scheduler")(cfg, opt)
    wanted = set(x["iterations"].tolist())
    got = []
    last = int(max(wanted))
    for i in range(last + 1):
        if i in wanted:
            got.append(opt.param_groups[0]["lr"])
        if i < last:
            opt.step()
            sched.step()
    return {"lr": np.array(got, np.float64)}


@unit
def optimizer_groups(package, p, x):
    """The learning rate and weight decay that each parameter of a small model gets."""
    from torch import nn

    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 4, 3))
    model.add_module("bn", nn.BatchNorm2d(4))
    model.add_module("gn", nn.GroupNorm(2, 4))
    model.add_module("ln", nn.LayerNorm(4))
    model.add_module("fc", nn.Linear(4, 2))
    model.fc.weight.requires_grad_(p["train_fc"])
    cfg = get(package, "config.get_cfg")()
    cfg.merge_from_list(p["overrides"])
    opt = get(package, "solver.build_optimizer")(cfg, model)
    where = {}
    for g in opt.param_groups:
        for q in g["params"]:
            where[id(q)] = [g["lr"], g["weight_decay"], g.get("momentum", 0.0)]
    rows = [where.get(id(q), [-1.0, -1.0, -1.0]) for _, q in model.named_parameters()]
    return {"lr_decay_momentum": np.array(rows, np.float64)}


# ------------------------------------------------------------------ evaluation


COCO_NAMES = []


@unit
def coco_evaluator(package, p, x):
    """AP numbers of fixed predictions on a made-up data set; -1 stands for NaN."""
    import contextlib
    import io

    COCO_NAMES.append(None)
    name = "golden_%s_%d_%d" % (p["id"], os.getpid(), len(COCO_NAMES))
    sizes = {im["id"]: (im["height"], im["width"]) for im in p["dataset"]["images"]}
    out = {}
    with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
        path = os.path.join(d, "gt.json")
        with open(path, "w") as f:
            json.dump(p["dataset"], f)
        get(package, "data.datasets.register_coco_instances")(name, {}, path, d)
        get(package, "data.DatasetCatalog").get(name)
        ev = get(package, "evaluation.COCOEvaluator")(
            name, tasks=tuple(p["tasks"]), distributed=False, output_dir=d, **p["kwargs"]
        )
        ev.reset()
        for i in sorted(sizes):
            h, w = sizes[i]
            sel = np.flatnonzero(x["image_ids"] == i)
            fields = {
                "pred_boxes": boxes(package, x["boxes"][sel]),
                "scores": t(x["scores"][sel]),
                "pred_classes": t(x["classes"][sel]),
            }
            if "segm" in p["tasks"]:
                masks = np.zeros((len(sel), h, w), bool)
                for k, j in enumerate(sel):
                    x0, y0, x1, y1 = x["mask_rects"][j]
                    masks[k, y0:y1, x0:x1] = True
                fields["pred_masks"] = t(masks)
            if "keypoints" in p["tasks"]:
                fields["pred_keypoints"] = t(x["keypoints"][sel])
            ev.process(
                [{"image_id": i, "height": h, "width": w}],
                [{"instances": instances(package, (h, w), **fields)}],
            )
        results = ev.evaluate()
    for task in sorted(results):
        for k in sorted(results[task]):
            v = results[task][k]
            out[f"{task}/{k}"] = np.array(-1.0 if np.isnan(v) else v, np.float64)
    return out


@unit
def voc_ap(package, p, x):
    f = get(package, "evaluation.pascal_voc_evaluation.voc_ap")
    return {
        "area": np.array(f(x["recall"], x["precision"], False)),
        "eleven_point": np.array(f(x["recall"], x["precision"], True)),
    }


# ------------------------------------------------------------------ comparing


def compare(expected, found, tolerance):
    """Problems; tolerance maps an output's name, or "*", to [atol, rtol, share of outliers]."""
    problems = []
    for k in sorted(set(expected) | set(found)):
        if k not in found or k not in expected:
            problems.append("{}: {}".format(k, "missing" if k in expected else "not expected"))
            continue
        e, f = np.asarray(expected[k]), np.asarray(found[k])
        if e.shape != f.shape:
            problems.append(f"{k}: shape {f.shape}, expected {e.shape}")
            continue
        atol, rtol, outliers = tolerance.get(k, tolerance["*"])
        e, f = e.astype(np.float64), f.astype(np.float64)
        same = (e == f) | (np.isnan(e) & np.isnan(f))
        bad = ~same & ~(np.abs(e - f) <= atol + rtol * np.abs(e))
        if bad.mean() > outliers if e.size else False:
            problems.append(
                "%s: max abs err %.3g (%d of %d values outside atol %g rtol %g)"
                % (k, np.abs(np.where(same, 0, e - f)).max(), bad.sum(), e.size, atol, rtol)
            )
    return problems


def load(path):
    """[(case id, params, inputs, outputs, tolerance)] of a unit file's json path."""
    with open(path) as f:
        spec = json.load(f)
    with np.load(path[: -len(".json")] + ".npz", allow_pickle=False) as z:
        arrays = {k: z[k] for k in z.files}
    out = []
    for c in spec["cases"]:
        pick = []
        for kind in ("in", "out"):
            prefix = "{}/{}/".format(c["id"], kind)
            pick.append({k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)})
        pick[0].update({k[len("common/") :]: v for k, v in arrays.items() if k.startswith("common/")})
        out.append((c["id"], dict(c["params"], id=c["id"]), pick[0], pick[1], c["tolerance"]))
    return spec, out

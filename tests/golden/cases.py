"""Run golden model cases against a package, detlib or another with the same public names, and compare the results."""

import contextlib
import importlib
import json
import zlib

import numpy as np

from tests.golden import weights as recipe


def get(package, dotted):
    """get("detlib", "structures.Boxes") is detlib.structures.Boxes."""
    module, name = (package + "." + dotted).rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


# ---------------------------------------------------------------- building and feeding


# Cases of configs in Python -> keys of the YAML config of the same name.
KEYS = {"model.max_detections_per_image": "TEST.DETECTIONS_PER_IMAGE"}


def build(package, case):
    cfg = get(package, "config.get_cfg")()
    config = case["config"].removesuffix(".py").removesuffix(".yaml") + ".yaml"
    cfg.merge_from_file(get(package, "model_zoo.get_config_file")(config))
    cfg.merge_from_list([KEYS.get(x, x) if i % 2 == 0 else x for i, x in enumerate(case["overrides"])])
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return get(package, "modeling.build_model")(cfg)


def state_digest(state):
    """[number of entries, crc32 of the sorted "key shape" lines] of a state_dict."""
    lines = [f"{k} {list(v.shape)}" for k, v in state.items()]
    return [len(lines), zlib.crc32("\n".join(sorted(lines)).encode())]


def apply_weights(model, spec):
    import torch

    state = model.state_dict()
    for key, value in state.items():
        w = recipe.weight(key, value.shape, spec["adjust"], spec["salt"])
        if w is not None:
            state[key] = torch.from_numpy(w).to(value.dtype)
    model.load_state_dict(state)


def images(case):
    out = []
    for im in case["images"]:
        x = recipe.image(im["seed"], im["height"], im["width"])
        if zlib.crc32(x.tobytes()) != im["crc32"]:
            raise RuntimeError("the image recipe gives other pixels here: check numpy")
        out.append(x)
    return out


def polygons_of(arrays, prefix, count):
    """Per instance, a list of flat float64 [x0, y0, x1, y1, ...] arrays."""
    polygons = [[] for _ in range(count)]
    flat, at = arrays[prefix + "polygon_points"].astype(np.float64), 0
    for owner, size in arrays[prefix + "polygon_owner_and_size"]:
        polygons[int(owner)].append(flat[at : at + int(size)])
        at += int(size)
    return polygons


def gt_instances(package, case, arrays, i):
    import torch

    im, prefix = case["images"][i], "gt/%d/" % i
    Instances, Boxes = get(package, "structures.Instances"), get(package, "structures.Boxes")
    inst = Instances((im["height"], im["width"]))
    inst.gt_boxes = Boxes(torch.from_numpy(arrays[prefix + "boxes"]))
    inst.gt_classes = torch.from_numpy(arrays[prefix + "classes"])
    if prefix + "polygon_points" in arrays:
        inst.gt_masks = get(package, "structures.PolygonMasks")(polygons_of(arrays, prefix, len(inst.gt_classes)))
    if prefix + "keypoints" in arrays:
        inst.gt_keypoints = get(package, "structures.Keypoints")(arrays[prefix + "keypoints"])
    return inst


def batch(package, case, arrays, training):
    import torch

    out = []
    for i, (im, x) in enumerate(zip(case["images"], images(case))):
        d = {"image": torch.from_numpy(x)}
        if "output_height" in im:
            d["height"], d["width"] = im["output_height"], im["output_width"]
        if training and "gt/%d/boxes" % i in arrays:
            d["instances"] = gt_instances(package, case, arrays, i)
        if training and "gt/%d/sem_seg_blocks" % i in arrays:
            block = case["sem_seg_block"]
            grid = arrays["gt/%d/sem_seg_blocks" % i].astype(np.int64)
            grid = grid.repeat(block, axis=0).repeat(block, axis=1)
            d["sem_seg"] = torch.from_numpy(grid[: im["height"], : im["width"]].copy())
        if "proposals/%d/boxes" % i in arrays:
            p = get(package, "structures.Instances")((im["height"], im["width"]))
            p.proposal_boxes = get(package, "structures.Boxes")(torch.from_numpy(arrays["proposals/%d/boxes" % i]))
            p.objectness_logits = torch.from_numpy(arrays["proposals/%d/logits" % i])
            d["proposals"] = p
        out.append(d)
    return out


# ---------------------------------------------------------------- collecting


def to_numpy(x):
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if x.is_floating_point() else x
        return x.contiguous().numpy()
    return np.asarray(x)


def summary(x, name, samples=64):
    """What is kept of a big array: its shape, [mean, std, absolute maximum] and samples."""
    x = to_numpy(x).astype(np.float64)
    u = recipe.uniform(zlib.crc32(name.encode()), samples)
    index = np.minimum((u * x.size).astype(np.int64), x.size - 1)
    stats = [x.mean(), x.std(), np.abs(x).max()] if x.size else [0.0, 0.0, 0.0]
    return {
        name + "/shape": np.array(x.shape, np.int64),
        name + "/stats": np.array(stats, np.float32),
        name + "/index": index if x.size else index[:0],
        name + "/values": x.reshape(-1)[index].astype(np.float32) if x.size else x.astype("f4"),
    }


def instance_arrays(inst, prefix):
    out = {prefix + "image_size": np.array(inst.image_size, np.int64)}
    names = {
        "pred_boxes": "boxes",
        "proposal_boxes": "boxes",
        "scores": "scores",
        "pred_classes": "classes",
        "objectness_logits": "logits",
        "pred_keypoints": "keypoints",
    }
    for field, short in names.items():
        if inst.has(field):
            v = inst.get(field)
            out[prefix + short] = to_numpy(getattr(v, "tensor", v))
    if inst.has("pred_masks"):
        m = inst.pred_masks
        m = to_numpy(getattr(m, "tensor", m)).astype(bool)
        out[prefix + "mask_areas"] = m.reshape(len(m), -1).sum(1).astype(np.int64)
        out[prefix + "mask_bits"] = np.packbits(m[:MASKS_KEPT].reshape(-1))
    return out


MASKS_KEPT = 3


def hooks(model, store):
    """Keep summaries of the inner stages. They locate a difference; they decide nothing."""

    def on_backbone(module, args, out):
        for k in sorted(out):
            store.update(summary(out[k], "inner/backbone/" + k))

    def on_head(module, args, out):
        for j, group in enumerate(out):
            for level, x in enumerate(group):
                store.update(summary(x, "inner/head/%d/%d" % (j, level)))

    def on_proposals(module, args, out):
        for i, p in enumerate(out[0]):
            store.update(instance_arrays(p, "inner/proposals/%d/" % i))

    def on_roi_heads(module, args, out):
        for i, r in enumerate(out[0]):
            prefix = "inner/roi_heads/%d/" % i
            if r.has("pred_masks"):
                store.update(summary(r.pred_masks, prefix + "mask_probabilities"))
            if r.has("pred_keypoint_heatmaps"):
                store.update(summary(r.pred_keypoint_heatmaps, prefix + "keypoint_heatmaps"))

    wanted = {
        "backbone": on_backbone,
        "head": on_head,
        "proposal_generator": on_proposals,
        "roi_heads": on_roi_heads,
    }
    handles = []
    for name, f in wanted.items():
        module = getattr(model, name, None)
        if module is not None:
            handles.append(module.register_forward_hook(careful(f)))
    return handles


def careful(f):
    def hook(module, args, out):
        with contextlib.suppress(Exception):  # an inner stage of another form: keep nothing of it
            f(module, args, out)

    return hook


def run_eval(package, case, arrays, model):
    import torch

    out = {}
    model.eval()
    handles = hooks(model, out)
    with torch.no_grad():
        results = model(batch(package, case, arrays, training=False))
    for h in handles:
        h.remove()
    for i, r in enumerate(results):
        prefix = "eval/%d/" % i
        for name in ("instances", "proposals"):
            if name in r:
                out.update(instance_arrays(r[name], prefix + name + "/"))
        if "sem_seg" in r:
            logits = to_numpy(r["sem_seg"])
            out.update(summary(logits, prefix + "sem_seg", 256))
            out[prefix + "sem_seg/areas"] = np.bincount(logits.argmax(0).reshape(-1), minlength=len(logits)).astype(
                np.int64
            )
        if "panoptic_seg" in r:
            seg, info = r["panoptic_seg"]
            seg = to_numpy(seg)
            # one row per segment: is it a thing, its category, its area; sorted, as ids are free
            rows = [[int(s["isthing"]), s["category_id"], int((seg == s["id"]).sum())] for s in info]
            out[prefix + "panoptic/segments"] = np.array(sorted(rows), np.int64).reshape(-1, 3)
            out[prefix + "panoptic/unlabelled"] = np.array([(seg == 0).sum()], np.int64)
    return out


def run_train(package, case, arrays, model):
    """(losses, gradient norms) of one step."""
    import torch

    torch.manual_seed(0)
    model.train()
    model.zero_grad()
    with get(package, "utils.events.EventStorage")(0):
        losses = model(batch(package, case, arrays, training=True))
    sum(losses.values()).backward()
    params = dict(model.named_parameters())
    norms = {}
    for name in case["train"]["grad_norms"]:
        g = params[name].grad
        norms[name] = None if g is None else float(g.double().norm())
    return {k: v.item() for k, v in losses.items()}, norms


def run(package, case, arrays):
    model = build(package, case)
    digest = state_digest(model.state_dict())
    if "state" in case and digest != case["state"]:
        raise RuntimeError("state_dict differs: {} entries and digest, expected {}".format(digest, case["state"]))
    apply_weights(model, case["weights"])
    out = run_eval(package, case, arrays, model)
    losses, norms = run_train(package, case, arrays, model)
    return out, losses, norms


# ---------------------------------------------------------------- comparing


class Report:
    def __init__(self, tolerance):
        self.tolerance = tolerance
        self.problems = []
        self.inner_problems = []
        self.worst = {}

    def problem(self, name, text):
        (self.inner_problems if name.startswith("inner/") else self.problems).append(f"{name}: {text}")

    def close(self, name, kind, expected, found):
        expected, found = np.asarray(expected), np.asarray(found)
        if expected.shape != found.shape:
            self.problem(name, f"shape {found.shape}, expected {expected.shape}")
            return
        if not expected.size:
            return
        atol, rtol, outliers = self.tolerance[kind]
        e, f = expected.astype(np.float64), found.astype(np.float64)
        error = np.abs(e - f)
        error[~np.isfinite(error)] = np.inf
        ratio = error / (atol + rtol * np.abs(e))
        if outliers:  # the worst few elements are not counted
            keep = int(np.ceil(ratio.size * (1 - outliers)))
            order = np.argsort(ratio, axis=None)[:keep]
            ratio, error = ratio.reshape(-1)[order], error.reshape(-1)[order]
        self.worst[kind] = max(self.worst.get(kind, 0.0), float(ratio.max()))
        if ratio.max() > 1:
            self.problem(
                name,
                "max abs err %.3g (%d of %d values outside atol %g rtol %g)"
                % (error.max(), (ratio > 1).sum(), expected.size, atol, rtol),
            )


def match(report, name, expected, found, prefix):
    """Pair found with expected detections; None if they cannot be paired one to one.

    The order of detections with nearly equal scores is free.
    """
    eb, fb = expected[prefix + "boxes"], found[prefix + "boxes"]
    if eb.shape != fb.shape:
        report.problem(name, "%d boxes, expected %d" % (len(fb), len(eb)))
        return None
    short = "scores" if prefix + "scores" in expected else "logits"
    es, fs = expected[prefix + short], found[prefix + short]
    ec = expected.get(prefix + "classes", np.zeros(len(eb), np.int64))
    fc = found.get(prefix + "classes", np.zeros(len(fb), np.int64))
    free, order = list(range(len(fb))), []
    for j in range(len(eb)):
        same = [k for k in free if fc[k] == ec[j]]
        if not same:
            report.problem(name, "no box of class %d left for expected box %d" % (ec[j], j))
            return None
        cost = [np.abs(fb[k] - eb[j]).max() + 100.0 * abs(fs[k] - es[j]) for k in same]
        best = same[int(np.argmin(cost))]
        free.remove(best)
        order.append(best)
    # outside near ties, the order must be that of the scores
    atol, rtol, _ = report.tolerance[short]
    if np.any(np.diff(fs) > atol + rtol * np.abs(fs[1:])):
        report.problem(name, "not sorted by score")
    return np.asarray(order, np.int64)


def compare_instances(report, name, expected, found, prefix):
    if prefix + "boxes" not in found:
        report.problem(name, "missing")
        return
    order = match(report, name, expected, found, prefix)
    if order is None:
        return
    kinds = {
        "boxes": "boxes",
        "scores": "scores",
        "logits": "logits",
        "keypoints": "keypoints",
        "mask_areas": "areas",
    }
    for short, kind in kinds.items():
        key = prefix + short
        if key not in expected:
            continue
        if key not in found:
            report.problem(key, "missing")
            continue
        e, f = expected[key], found[key][order] if len(order) else found[key]
        if short == "keypoints":
            report.close(key, "keypoints", e[..., :2], f[..., :2])
            report.close(key, "keypoint_scores", e[..., 2], f[..., 2])
        else:
            report.close(key, kind, e, f)
    report.close(prefix + "image_size", "exact", expected[prefix + "image_size"], found[prefix + "image_size"])
    key = prefix + "mask_bits"
    if key in expected and key in found and np.array_equal(order, np.arange(len(order))):
        e, f = np.unpackbits(expected[key]), np.unpackbits(found[key])
        if e.shape != f.shape:
            report.problem(key, "shape")
        else:
            report.close(key, "mask_bits", [0.0], [float((e != f).mean())])


def compare(case, expected, losses, norms, found):
    """expected: the arrays of the npz; found: what run() returned."""
    report = Report(case["tolerance"])
    out, got_losses, got_norms = found
    groups = sorted({k.rsplit("/", 1)[0] for k in expected if k.startswith(("eval/", "inner/"))})
    for g in groups:
        p = g + "/"
        if p + "boxes" in expected:
            compare_instances(report, g, expected, out, p)
        elif p + "values" in expected:
            if p + "values" not in out:
                report.problem(g, "missing")
                continue
            shape = expected[p + "shape"]
            if not np.array_equal(shape, out[p + "shape"]):
                report.problem(g, "shape {}, expected {}".format(list(out[p + "shape"]), list(shape)))
                continue
            scale = max(float(expected[p + "stats"][2]), 1e-6)
            report.close(g, "features", expected[p + "stats"] / scale, out[p + "stats"] / scale)
            report.close(g, "features", expected[p + "values"] / scale, out[p + "values"] / scale)
            if p + "areas" in expected:
                report.close(p + "areas", "areas", expected[p + "areas"], out[p + "areas"])
        elif p + "segments" in expected:
            if p + "segments" not in out:
                report.problem(g, "missing")
                continue
            e, f = expected[p + "segments"], out[p + "segments"]
            if e.shape != f.shape or not np.array_equal(e[:, :2], f[:, :2]):
                report.problem(g, f"segments {f.tolist()}, expected {e.tolist()}")
            else:
                report.close(p + "segments", "areas", e[:, 2], f[:, 2])
                report.close(p + "unlabelled", "areas", expected[p + "unlabelled"], out[p + "unlabelled"])
    if set(losses) != set(got_losses):
        report.problem("losses", f"names {sorted(got_losses)}, expected {sorted(losses)}")
    for k in sorted(set(losses) & set(got_losses)):
        report.close("loss " + k, "losses", [losses[k]], [got_losses[k]])
    for k in sorted(norms):
        if (norms[k] is None) != (got_norms.get(k) is None):
            report.problem("gradient of " + k, f"{got_norms.get(k)}, expected {norms[k]}")
        elif norms[k] is not None:
            report.close("gradient of " + k, "grad_norms", [norms[k]], [got_norms[k]])
    return report


def load(path):
    """(case, arrays) from the path of a case's json file."""
    with open(path) as f:
        case = json.load(f)
    with np.load(path[: -len(".json")] + ".npz", allow_pickle=False) as z:
        arrays = {k: z[k] for k in z.files}
    return case, arrays


def check(package, path):
    """A list of problems, empty if the case matches."""
    case, arrays = load(path)
    found = run(package, case, arrays)
    report = compare(case, arrays, case["train"]["losses"], case["train"]["grad_norms"], found)
    if report.problems and report.inner_problems:
        report.problems.append("earliest inner difference: " + report.inner_problems[0])
    return report.problems

"""What MAE, SimMIM and CAE have in common, for the configs that are shipped."""

from pathlib import Path

import pytest
import torch

from detlib.config import get_cfg
from detlib.data.view_mapper import build_views
from detlib.engine import SimpleTrainer
from detlib.modeling import build_model
from detlib.solver import build_lr_scheduler, build_optimizer
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

CONFIGS = Path(__file__).parents[3] / "configs" / "SelfSupervised"
RECIPES = {
    "mae": "mae_vit_base_p16_300e.yaml",
    "simmim": "simmim_swin_base_192_100e.yaml",
    "cae": "cae_vit_base_p16_300e.yaml",
}
GRID = {"mae": 8, "simmim": 16, "cae": 8}

pytestmark = pytest.mark.parametrize("name", RECIPES)


def read(file):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / file))
    return cfg


def build_tiny(name):
    torch.manual_seed(0)
    return build_model(read(f"tiny/{name}.yaml"))


def samples(name, num_samples=2):
    """Two different images of 64 pixels, each with a mask of its own that hides a quarter of them."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for place in range(num_samples):
        mask = torch.zeros(GRID[name], GRID[name], dtype=torch.uint8)
        mask[: GRID[name] // 2, place : place + GRID[name] // 2] = 1
        image = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
        batch.append({"views": [image], "mask": mask, "target_image": image, "sample_idx": place})
    return batch


def seeded_loss(model, batch):
    torch.manual_seed(3)
    return sum(model(batch, mode="loss").values())


def test_loss_is_finite_and_reaches_every_trainable_parameter_and_no_other(name):
    model = build_tiny(name)
    losses = model(samples(name))
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
        assert parameter.grad is None or parameter.grad.any(), parameter_name


def test_only_teacher_and_tokenizer_are_frozen(name):
    frozen = {n.split(".")[0] for n, p in build_tiny(name).named_parameters() if not p.requires_grad}
    assert frozen == ({"teacher", "target_generator"} if name == "cae" else set())


def test_batch_of_one_is_learned_from_and_predicted(name):
    model = build_tiny(name)
    assert all(loss.isfinite() for loss in model(samples(name, 1)).values())
    assert len(model.eval()(samples(name, 1), mode="predict")) == 1


def test_plain_image_gives_a_tensor_in_evaluation(name):
    image = samples(name, 1)[0]["views"][0]
    assert len(build_tiny(name).eval()([{"image": image}])) == 1


def test_features_are_had_of_images_of_other_sizes_without_a_mask(name):
    features = build_tiny(name).eval().extract_feat(torch.rand(1, 3, 96, 80))
    assert [tuple(x.shape) for x in features.values()] == [(1, 64, 12, 10)]


def test_loss_of_a_batch_is_the_mean_of_its_halves_as_processes_average_it(name, monkeypatch):
    model, batch = build_tiny(name), samples(name)
    if name == "mae":
        encode = model.backbone.encode_visible

        def encode_same(images, mask_ratio):  # Pixels in place of noise hide the same patches each time.
            return encode(images, mask_ratio, images[:, 0, ::8, ::8].flatten(1))

        monkeypatch.setattr(model.backbone, "encode_visible", encode_same)
    whole, *halves = (sum(model(part).values()) for part in (batch, batch[:1], batch[1:]))
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.mark.parametrize("part", ["NECK", "HEAD"])
def test_part_that_is_not_named_is_an_error_with_its_key(name, part):
    cfg = read(f"tiny/{name}.yaml")
    cfg.MODEL.SSL[part] = {"NAME": ""}
    with pytest.raises(ConfigError, match=rf"needs MODEL\.SSL\.{part}, as"):
        build_model(cfg)


def test_mode_is_loss_when_training_and_else_tensor(name):
    model = build_tiny(name)
    assert isinstance(model(samples(name)), dict)
    assert isinstance(model.eval()(samples(name)), torch.Tensor)


def test_tensor_and_predict_change_nothing_and_loss_the_teacher_only(name):
    model = build_tiny(name)

    def changed_by(**kwargs):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model(samples(name), **kwargs)
        return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}

    assert changed_by(mode="tensor") == changed_by(mode="predict") == set()
    assert changed_by() == changed_by() == ({"teacher.num_updates"} if name == "cae" else set())


def test_plain_trainer_runs_and_the_log_tells_the_spread(name):
    cfg = read(f"tiny/{name}.yaml")
    model = build_tiny(name)
    before = model.backbone.state_dict()["patch_embed.proj.weight"].clone()
    trainer = SimpleTrainer(model, [samples(name)] * 3, build_optimizer(cfg, model))
    trainer.train(0, 3)
    assert not torch.equal(model.backbone.patch_embed.proj.weight, before)
    assert 0 < trainer.storage.latest()["embedding_spread"][0] < 2


def test_loss_is_float32_and_finite_in_mixed_precision(name):
    model = build_tiny(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = seeded_loss(model, samples(name))
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()


def test_recipe_decays_matrices_only(name):
    cfg = read(RECIPES[name])
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    decays = {p: group["weight_decay"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            small = parameter.dim() < 2 or parameter_name.endswith(("_token", "bias_table"))
            assert decays[parameter] == (0.0 if small else 0.05), parameter_name


def test_recipe_warms_up_and_ends_as_published(name):
    cfg = read(RECIPES[name])
    images, epochs, warmup_epochs, first, highest, last = {
        "mae": (4096, 300, 40, 2.4e-6, 2.4e-3, 0.0),
        "simmim": (2048, 100, 10, 4e-6, 8e-4, 4e-5),
        "cae": (2048, 300, 10, 1.5e-6, 1.5e-3, 1e-5),
    }[name]
    epoch = 1281167 // images
    assert (images, epochs * epoch) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER)
    scheduler = build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], lr=cfg.SOLVER.BASE_LR))
    lrs = {}
    for iteration in (0, warmup_epochs * epoch, (warmup_epochs + epochs) * epoch // 2, epochs * epoch):
        scheduler.last_epoch = iteration
        lrs[iteration] = scheduler.get_lr()[0]
    assert list(lrs.values()) == pytest.approx([first, highest, (highest + last) / 2, last])


def test_recipe_clips_and_averages_gradients_as_published(name):
    cfg = read(RECIPES[name])
    clip = cfg.SOLVER.CLIP_GRADIENTS
    longest = {"mae": None, "simmim": ("full_model", 5.0), "cae": ("full_model", 3.0)}[name]
    assert longest == ((clip.CLIP_TYPE, clip.CLIP_VALUE) if clip.ENABLED else None)
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.95 if name == "mae" else 0.999)


def test_recipe_crops_and_flips_only_and_hides_as_many_patches_as_published(name):
    (view,) = build_views(read(RECIPES[name]))
    size, smallest, interp, num_hidden = {
        "mae": (224, 0.2, "BICUBIC", None),
        "simmim": (192, 0.67, "BILINEAR", 22 * 64),
        "cae": (224, 0.08, "BICUBIC", 75),
    }[name]
    steps = {type(step).__name__: step for step in view.augmentations.augs}
    assert (view.count, steps.keys()) == (1, {"RandomResizedCrop", "RandomFlip"})
    crop = steps["RandomResizedCrop"]
    assert (crop.size, crop.scale, crop.interp.name) == ((size, size), (smallest, 1.0), interp)
    assert num_hidden == (None if view.mask is None else view.mask().sum())
    target = None if view.target is None else (view.target.size, view.target.interp.name)
    assert target == (((112, 112), "LANCZOS") if name == "cae" else None)


def test_log_has_nothing_but_the_spread_beside_the_losses(name):
    with EventStorage() as storage:
        build_tiny(name)(samples(name))
        assert storage.latest().keys() == {"embedding_spread"}

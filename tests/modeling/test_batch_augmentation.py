import pytest
import torch
import torch.nn.functional as F

from detlib.modeling import batch_augmentation
from detlib.modeling.batch_augmentation import CutMix, Mixup, RandomBatchAugment, ResizeMix, build_batch_augment
from detlib.utils.errors import ConfigError, UnknownNameError

N, K, H, W = 4, 4, 12, 20
AUGMENTS = [
    Mixup(0.8),
    CutMix(1.0),
    CutMix(1.0, correct_lam=False),
    CutMix(1.0, cutmix_minmax=(0.2, 0.8)),
    ResizeMix(1.0),
]
ALL = pytest.mark.parametrize("augment", AUGMENTS, ids=["mixup", "cutmix", "uncorrected", "minmax", "resizemix"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    """Image i has the value 10 ** i everywhere and the label i."""
    values = 10.0 ** torch.arange(N)
    return values.view(N, 1, 1, 1).expand(N, 3, H, W).clone(), torch.eye(K)


@pytest.fixture
def always(monkeypatch):
    """Makes augmentations draw the same part and partner: the image to the right in the batch."""

    def fix(lam):
        monkeypatch.setattr(batch_augmentation, "_draw", lambda alpha: lam)
        monkeypatch.setattr(torch, "randperm", lambda n, **kwargs: torch.arange(1, n + 1) % n)

    return fix


def share_of_pixels(images):
    """For each image of `batch` after cutting, the part of the pixels that come from each original."""
    return torch.stack([(images[:, 0] == 10.0**i).float().mean(dim=(1, 2)) for i in range(N)], dim=1)


@ALL
def test_labels_still_sum_to_one(augment, batch):
    for _ in range(20):
        _, targets = augment(*batch)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(N))


@ALL
def test_given_tensors_stay_as_they_are(augment, batch):
    images, targets = (x.clone() for x in batch)
    augment(*batch)
    assert torch.equal(batch[0], images)
    assert torch.equal(batch[1], targets)


@ALL
def test_a_single_image_stays_as_it_is(augment):
    image, target = torch.rand(1, 3, H, W), torch.eye(K)[:1]
    for _ in range(5):
        mixed, mixed_target = augment(image, target)
        torch.testing.assert_close(mixed, image)
        torch.testing.assert_close(mixed_target, target)


@ALL
def test_random_numbers_are_those_of_torch(augment, batch):
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(augment(*batch))
    assert all(torch.equal(a, b) for a, b in zip(*drawn))


@ALL
def test_integer_labels_are_refused(augment, batch):
    with pytest.raises(ValueError, match=r"floats of shape \(N, K\), for 4 images; got torch.int64 .*one_hot"):
        augment(batch[0], torch.arange(N))


@ALL
def test_images_keep_half_precision(augment, batch):
    assert augment(batch[0].half(), batch[1])[0].dtype == torch.float16


@pytest.mark.parametrize("augment", [Mixup(1.0), CutMix(1.0)])
def test_a_part_of_one_is_the_identity(augment, batch, always):
    always(1.0)
    images, targets = augment(*batch)
    assert torch.equal(images, batch[0])
    assert torch.equal(targets, batch[1])


def test_mixup_is_the_weighted_mean_of_images_and_labels(batch, always):
    always(0.75)
    images, targets = Mixup(1.0)(*batch)
    assert (images[0] == 0.75 * 1 + 0.25 * 10).all()
    assert targets[0].tolist() == [0.75, 0.25, 0, 0]
    assert targets[3].tolist() == [0.25, 0, 0, 0.75]


def test_mixup_keeps_the_mean_of_the_batch(batch):
    images, targets = Mixup(0.4)(*batch)
    torch.testing.assert_close(images.mean(dim=0), batch[0].mean(dim=0))
    torch.testing.assert_close(targets.mean(dim=0), batch[1].mean(dim=0))


@pytest.mark.parametrize("augment", [CutMix(1.0), CutMix(1.0, cutmix_minmax=(0.2, 0.8))], ids=["centred", "minmax"])
def test_cutmix_labels_are_the_shares_of_the_pixels(augment, batch):
    for _ in range(20):
        images, targets = augment(*batch)
        torch.testing.assert_close(targets, share_of_pixels(images))


def test_cutmix_without_correction_keeps_the_part_that_was_drawn(batch, always):
    always(0.75)
    for _ in range(5):
        assert CutMix(1.0, correct_lam=False)(*batch)[1][0].tolist() == [0.75, 0.25, 0, 0]


def test_cutmix_cuts_a_box_of_half_the_sides_for_a_quarter(batch, always, monkeypatch):
    always(0.75)
    monkeypatch.setattr(torch, "rand", lambda n: torch.full((n,), 0.5))
    images, targets = CutMix(1.0)(*batch)
    expected = batch[0].clone()
    expected[:, :, 3:9, 5:15] = batch[0][[1, 2, 3, 0], :, 3:9, 5:15]  # from the original batch
    assert torch.equal(images, expected)
    assert targets[0].tolist() == [0.75, 0.25, 0, 0]


def test_cutmix_box_at_a_corner_loses_what_is_outside(batch, always, monkeypatch):
    always(0.75)
    monkeypatch.setattr(torch, "rand", torch.zeros)
    images, targets = CutMix(1.0)(*batch)
    assert (images[0, :, :3, :5] == 10).all()
    assert (images[0] == 10).sum() == 3 * 3 * 5
    assert targets[0].tolist() == pytest.approx([1 - 1 / 16, 1 / 16, 0, 0])


def test_cutmix_sides_stay_between_minmax(batch):
    for _ in range(30):
        pasted = CutMix(1.0, cutmix_minmax=(0.25, 0.5))(*batch)[0] != batch[0]
        mixed = pasted[:, 0].flatten(1).any(dim=1)  # some images may have met themselves
        for image in pasted[mixed][:, 0]:
            assert 3 <= image.any(dim=1).sum() <= 6
            assert 5 <= image.any(dim=0).sum() <= 10


def test_resizemix_pastes_the_whole_of_the_other_image(always, monkeypatch):
    """Its left half is 0 and its right half 1, and so it is in the box, which keeps a quarter of the area."""
    always(0.5)
    monkeypatch.setattr(torch, "rand", lambda n: torch.full((n,), 0.5))
    images = torch.stack([torch.full((1, 8, 8), 5.0), torch.cat([torch.zeros(1, 8, 4), torch.ones(1, 8, 4)], dim=2)])
    mixed, targets = ResizeMix(1.0, lam_min=0.5, lam_max=1.0)(images, torch.eye(2))
    expected = torch.full((1, 8, 8), 5.0)
    expected[:, 2:6, 2:6] = F.interpolate(images[1:], (4, 4), mode="bilinear")[0]
    assert torch.equal(mixed[0], expected)
    assert mixed[0, 0, 3, 2:6].tolist() == [0, 0, 1, 1]
    assert targets[0].tolist() == [0.75, 0.25]


def test_resizemix_leaves_at_least_lam_min(batch):
    shares = torch.stack([ResizeMix(1.0, lam_min=0.6, lam_max=0.9)(*batch)[1].max(dim=1).values for _ in range(30)])
    assert shares.min() > 0.55  # sides are rounded to pixels


def test_one_augmentation_is_drawn_for_each_batch():
    calls = []
    augments = [lambda x, y, i=i: calls.append(i) or (x, y) for i in range(2)]
    augment = RandomBatchAugment(augments, [0.2, 0.5])
    for _ in range(500):
        augment(torch.zeros(2, 1), torch.zeros(2, 1))
    assert calls.count(0) == pytest.approx(100, abs=30)
    assert calls.count(1) == pytest.approx(250, abs=40)  # the rest is no change


def test_without_probabilities_all_are_equally_likely():
    augment = RandomBatchAugment([Mixup(1.0), CutMix(1.0), ResizeMix(1.0)])
    assert augment.probs.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=1e-6)


@pytest.mark.parametrize("probs", [[0.6, 0.5], [-0.1, 0.5]])
def test_probabilities_above_one_are_refused(probs):
    with pytest.raises(AssertionError, match="at most 1"):
        RandomBatchAugment([Mixup(1.0), CutMix(1.0)], probs)


def test_each_augmentation_needs_a_probability():
    with pytest.raises(ConfigError, match="1 probabilities are given for 2"):
        RandomBatchAugment([Mixup(1.0), CutMix(1.0)], [0.5])


@pytest.mark.parametrize("alpha", [0, -1.0, None, True])
@pytest.mark.parametrize("augment", [Mixup, CutMix, ResizeMix])
def test_alpha_must_be_positive(augment, alpha):
    with pytest.raises(ConfigError, match="alpha must be a positive number, got"):
        augment(alpha)


def test_ranges_must_rise_between_zero_and_one():
    with pytest.raises(ConfigError, match=r"cutmix_minmax is \(0.8, 0.2\)"):
        CutMix(1.0, cutmix_minmax=(0.8, 0.2))
    with pytest.raises(ConfigError, match=r"lam_min is 0\.1 and lam_max 1\.5"):
        ResizeMix(1.0, lam_max=1.5)


def test_parts_are_built_by_name():
    augment = build_batch_augment([{"NAME": "Mixup", "ALPHA": 1}, {"NAME": "CutMix", "ALPHA": 0.5}], [0.5, 0.3])
    assert [type(part).__name__ for part in augment.augments] == ["Mixup", "CutMix"]
    assert augment.augments[0].alpha == 1.0
    with pytest.raises(UnknownNameError, match="did you mean 'CutMix'"):
        build_batch_augment([{"NAME": "Cutmix", "ALPHA": 0.5}])


def test_no_parts_are_no_augmentation():
    assert build_batch_augment([]) is None

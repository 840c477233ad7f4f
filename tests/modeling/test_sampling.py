import torch

from detlib.modeling.sampling import subsample_labels

LABELS = torch.tensor([-1] * 5 + [0] * 10 + [7] * 20)  # 20 of background 7, 10 of class 0, 5 ignored


def test_foreground_is_limited_and_background_fills_the_rest():
    positive, negative = subsample_labels(LABELS, num_samples=12, positive_fraction=0.5, bg_label=7)
    assert (len(positive), len(negative)) == (6, 6)
    assert (LABELS[positive] == 0).all()
    assert (LABELS[negative] == 7).all()


def test_ignored_elements_are_never_drawn():
    positive, negative = subsample_labels(LABELS, num_samples=1000, positive_fraction=1.0, bg_label=7)
    assert sorted(torch.cat([positive, negative]).tolist()) == list(range(5, 35))


def test_nothing_to_draw_from():
    positive, negative = subsample_labels(torch.full((4,), -1), num_samples=2, positive_fraction=0.5, bg_label=7)
    assert (len(positive), len(negative)) == (0, 0)

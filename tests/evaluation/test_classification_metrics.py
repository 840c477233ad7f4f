import math

import pytest
import torch

from detlib.evaluation.classification_metrics import (
    average_precision,
    confusion_matrix,
    label_ranks,
    multi_label_counts,
    multi_label_metrics,
    multi_label_predictions,
    precision_recall_f1,
    single_label_counts,
    topk_accuracy,
)

SCORES = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
LABELS = torch.tensor([0, 1, 1])


def column(*values):
    return torch.tensor(values)[:, None]


def test_topk_accuracy_of_the_specification():
    assert topk_accuracy(SCORES, LABELS, topk=(1, 2)) == {"top1": pytest.approx(200 / 3), "top2": 100}


def test_hit_needs_more_than_the_threshold():
    accuracies = topk_accuracy(SCORES, LABELS, topk=1, thrs=(None, 0.5, 0.8, 0.9))
    # Scores of the hits: 0.9 and 0.8.
    expected = {"top1": 200 / 3, "top1_thr0.5": 200 / 3, "top1_thr0.8": 100 / 3, "top1_thr0.9": 0}
    assert accuracies == pytest.approx(expected)
    assert topk_accuracy(SCORES, LABELS, 2, 0.3) == {"top2_thr0.3": 100}


def test_of_equal_scores_the_lower_index_comes_first():
    scores = torch.tensor([[0.5, 0.5, 0.5]]).expand(3, 3)
    assert label_ranks(scores, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    assert topk_accuracy(scores[:1], torch.tensor([1]), topk=(1, 2)) == {"top1": 0, "top2": 100}


def test_label_ranks_agree_with_sorting():
    scores = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    labels = torch.arange(20) % 7
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(label_ranks(scores, labels), (order == labels[:, None]).int().argmax(dim=1))


def test_label_without_a_number_as_score_is_no_hit():
    scores = torch.tensor([[float("nan"), 0.1], [float("nan"), float("nan")]])
    assert topk_accuracy(scores, torch.tensor([0, 0]), topk=(1, 2)) == {"top1": 0, "top2": 0}


def test_scores_of_half_precision_give_the_same():
    assert topk_accuracy(SCORES.half(), LABELS, 1) == topk_accuracy(SCORES, LABELS, 1)


def test_accuracy_without_samples_is_nan():
    assert math.isnan(topk_accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 1)["top1"])


@pytest.mark.parametrize("k", [0, 3])
def test_k_outside_of_the_classes_is_refused(k):
    with pytest.raises(ValueError, match=f"topk has {k}, expected 1 to 2, the number of classes"):
        topk_accuracy(SCORES, LABELS, topk=(1, k))


def test_rows_of_the_confusion_matrix_are_the_truth():
    confusion = confusion_matrix(torch.tensor([0, 2, 2, 1]), torch.tensor([0, 0, 0, 1]), num_classes=3)
    assert confusion.tolist() == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert confusion_matrix(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 2).sum() == 0


CONFUSION = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])


def test_precision_recall_and_f1_of_each_class():
    metrics = precision_recall_f1(single_label_counts(CONFUSION), average=None)
    assert metrics["precision"].tolist() == pytest.approx([100, 200 / 3, 0])
    assert metrics["recall"].tolist() == pytest.approx([75, 100, 0])
    assert metrics["f1"].tolist() == pytest.approx([600 / 7, 80, 0])
    assert metrics["support"].tolist() == [4, 2, 0]


def test_macro_average_counts_classes_without_samples_as_zero():
    metrics = precision_recall_f1(single_label_counts(CONFUSION))
    assert metrics["precision"].item() == pytest.approx((100 + 200 / 3) / 3)
    assert metrics["recall"].item() == pytest.approx(175 / 3)
    assert metrics["f1"].item() == pytest.approx((600 / 7 + 80) / 3)
    assert metrics["support"] == 6


def test_micro_averages_of_single_labels_are_the_accuracy():
    metrics = precision_recall_f1(single_label_counts(CONFUSION), average="micro")
    assert [metrics[name].item() for name in ("precision", "recall", "f1")] == pytest.approx([100 * 5 / 6] * 3)
    assert metrics["support"] == 6


def test_unknown_average_is_refused():
    with pytest.raises(ValueError, match="average is 'mean', expected 'macro', 'micro' or None"):
        precision_recall_f1(single_label_counts(CONFUSION), average="mean")


def test_multi_label_predictions_take_the_threshold_before_topk():
    scores = torch.tensor([[0.5, 0.6, 0.1], [0.2, 0.2, 0.2]])
    assert multi_label_predictions(scores).tolist() == [[True, True, False], [False] * 3]
    assert multi_label_predictions(scores, thr=0.15).tolist() == [[True, True, False], [True] * 3]
    assert multi_label_predictions(scores, topk=1).tolist() == [[False, True, False], [True, False, False]]
    assert multi_label_predictions(scores, thr=0.6, topk=2).tolist() == [[False, True, False], [False] * 3]
    with pytest.raises(ValueError, match="topk is 4, expected 1 to 3"):
        multi_label_predictions(scores, topk=4)


def test_multi_label_metrics_are_means_over_classes_and_over_all_labels():
    predictions = torch.tensor([[1, 1], [1, 0], [1, 0]]).bool()
    targets = torch.tensor([[1, 1], [0, 1], [0, 1]])
    # Class 0: precision 1/3, recall 1, F1 1/2; class 1: precision 1, recall 1/3, F1 1/2.
    metrics = multi_label_metrics(predictions, targets)
    assert (metrics["CP"], metrics["CR"], metrics["CF1"]) == pytest.approx((200 / 3, 200 / 3, 50))
    # 2 hits of 4 predicted and 4 true labels.
    assert (metrics["OP"], metrics["OR"], metrics["OF1"]) == pytest.approx((50, 50, 50))


def test_ignored_entries_are_neither_hits_nor_mistakes():
    predictions = torch.tensor([[True], [True], [False]])
    counts = multi_label_counts(predictions, column(1, -1, -1))
    assert [count.item() for count in counts] == [1, 1, 1]


def test_average_precision_of_the_specification():
    ap = average_precision(column(0.9, 0.8, 0.7), column(1, 0, 1))
    assert ap.tolist() == pytest.approx([100 * (1 / 1 + 2 / 3) / 2])


def test_average_precision_leaves_ignored_samples_out_of_the_ranking():
    assert average_precision(column(0.9, 0.8, 0.7), column(-1, 1, 0)).tolist() == [100]


def test_average_precision_keeps_the_order_of_equal_scores():
    scores = column(0.5, 0.5)
    assert average_precision(scores, column(1, 0)).item() == 100
    assert average_precision(scores, column(0, 1)).item() == 50


def test_average_precision_of_a_class_without_positives_is_nan():
    ap = average_precision(torch.tensor([[0.9, 0.1]]), torch.tensor([[0, 1]]))
    assert math.isnan(ap[0])
    assert ap[1] == 100


def test_average_precision_agrees_with_a_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(30, 3, generator=generator)
    targets = torch.randint(-1, 2, (30, 3), generator=generator)
    for c in range(3):
        ranked = [t for _, t in sorted(zip((-scores[:, c]).tolist(), targets[:, c].tolist(), strict=True)) if t >= 0]
        precisions = [sum(ranked[: i + 1]) / (i + 1) for i, t in enumerate(ranked) if t == 1]
        assert average_precision(scores, targets)[c].item() == pytest.approx(100 * sum(precisions) / len(precisions))

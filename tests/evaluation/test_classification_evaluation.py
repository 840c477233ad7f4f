import json
import logging
import math

import pytest
import torch

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.evaluation import (
    ClassificationEvaluator,
    MultiLabelEvaluator,
    build_evaluator,
    inference_on_dataset,
)
from detlib.modeling import build_model
from detlib.utils.errors import ConfigError, DatasetError

# The example of the specification: the third image has label 1 and prediction 0.
SCORES = ((0.9, 0.1), (0.2, 0.8), (0.6, 0.4))
SAMPLES = [{"image_id": i, "label": label} for i, label in enumerate((0, 1, 1))]
MULTI_LABEL_SAMPLES = [
    {"image_id": 0, "labels": [0]},
    {"image_id": 1, "labels": [1], "ignored_labels": [1]},
    {"image_id": 2, "labels": [0, 1]},
]


@pytest.fixture
def pets(dataset):
    return dataset(SAMPLES, classes=("cat", "dog"))


@pytest.fixture
def multi_label_pets(dataset):
    return dataset(MULTI_LABEL_SAMPLES, classes=("cat", "dog"))


def outputs_of(scores):
    return [{"pred_score": torch.tensor(row), "pred_label": row.index(max(row))} for row in scores]


def evaluate(name, samples=SAMPLES, scores=SCORES, **kwargs):
    evaluator = ClassificationEvaluator(name, **kwargs)
    for sample, output in zip(samples, outputs_of(scores), strict=True):
        evaluator.process([sample], [output])
    return evaluator.evaluate()["classification"]


def test_metrics_are_those_of_all_batches(pets):
    results = evaluate(pets, topk=(1, 2))
    assert (results["top1"], results["top2"]) == (pytest.approx(200 / 3), 100)
    # cat: precision 1/2, recall 1; dog: precision 1, recall 1/2.
    assert (results["precision"], results["recall"], results["f1"]) == pytest.approx((75, 75, 200 / 3))
    assert (results["f1-cat"], results["f1-dog"]) == pytest.approx((200 / 3, 200 / 3))


def test_one_batch_gives_what_several_give(pets):
    evaluator = ClassificationEvaluator(pets)
    evaluator.process(SAMPLES, outputs_of(SCORES))
    assert evaluator.evaluate()["classification"] == evaluate(pets)


def test_micro_average_is_the_accuracy(pets):
    results = evaluate(pets, average="micro")
    assert results["precision"] == results["recall"] == pytest.approx(results["f1"]) == pytest.approx(results["top1"])


def test_accuracies_may_need_a_score(pets):
    results = evaluate(pets, topk=1, thrs=(None, 0.85))
    assert (results["top1"], results["top1_thr0.85"]) == pytest.approx((200 / 3, 100 / 3))


def test_default_topk_leaves_out_what_exceeds_the_classes(pets, caplog):
    with caplog.at_level(logging.INFO):
        assert {name for name in evaluate(pets) if name.startswith("top")} == {"top1"}
    assert "has 2 classes; accuracy is computed for topk (1,) only" in caplog.text


@pytest.mark.parametrize("topk", [3, (1, 3), 0])
def test_given_topk_must_fit_the_classes(pets, topk):
    with pytest.raises(ConfigError, match=r"topk is \(.*\), but .* has 2 classes"):
        ClassificationEvaluator(pets, topk=topk)


def test_unknown_average_is_refused(pets):
    with pytest.raises(ConfigError, match="average is None"):
        ClassificationEvaluator(pets, average=None)


def test_repeated_samples_count_once(pets, caplog):
    with caplog.at_level(logging.INFO):
        results = evaluate(pets, [*SAMPLES, SAMPLES[0], SAMPLES[0]], [*SCORES, SCORES[0], SCORES[0]])
    assert results["top1"] == pytest.approx(200 / 3)
    assert "2 of 5 predictions" in caplog.text


def test_samples_without_an_id_all_count(pets):
    samples = [{"label": label} for label in (0, 1, 1)]
    assert evaluate(pets, samples)["top1"] == pytest.approx(200 / 3)


def test_reset_forgets_what_was_collected(pets):
    evaluator = ClassificationEvaluator(pets)
    evaluator.process(SAMPLES[2:], outputs_of(SCORES[2:]))
    evaluator.reset()
    evaluator.process(SAMPLES[:2], outputs_of(SCORES[:2]))
    assert evaluator.evaluate()["classification"]["top1"] == 100


@pytest.mark.parametrize("field", ["image_id", "file_name"])
def test_labels_that_the_mapper_dropped_come_from_the_dataset(dataset, field):
    name = dataset([{field: str(i), "label": label} for i, label in enumerate((0, 1, 1))], classes=("cat", "dog"))
    assert evaluate(name, [{field: str(i)} for i in range(3)])["top1"] == pytest.approx(200 / 3)


def test_model_of_labels_only_has_top1(pets, caplog):
    evaluator = ClassificationEvaluator(pets, topk=(1, 2))
    evaluator.process(SAMPLES, [{"pred_label": label} for label in (0, 1, 0)])
    results = evaluator.evaluate()["classification"]
    assert results["top1"] == pytest.approx(200 / 3)
    assert "top2" not in results
    assert results["recall"] == 75
    assert "only top1 is computed" in caplog.text


def test_scores_of_half_precision_are_evaluated(pets):
    evaluator = ClassificationEvaluator(pets)
    evaluator.process(SAMPLES, [{"pred_score": torch.tensor(row).half()} for row in SCORES])
    assert evaluator.evaluate()["classification"]["top1"] == pytest.approx(200 / 3)


def test_tables_show_classes_and_their_confusion(pets, caplog):
    with caplog.at_level(logging.INFO):
        evaluate(pets)
    lines = [" ".join(line.replace("|", " ").split()) for line in caplog.text.splitlines()]
    assert "precision recall f1 support" in lines
    assert "dog 100.000 50.000 66.667 2" in lines
    assert "dog 1 1" in lines  # One dog taken for a cat, one found.


def test_of_many_classes_the_worst_and_the_most_frequent_mistakes_are_shown(dataset, caplog):
    names = tuple(f"class{i}" for i in range(101))
    samples = [{"image_id": i, "label": i} for i in range(101)]
    predicted = [7, 7, *range(2, 101)]
    evaluator = ClassificationEvaluator(dataset(samples, classes=names))
    with caplog.at_level(logging.INFO):
        evaluator.process(samples, [{"pred_label": label} for label in predicted])
        evaluator.evaluate()
    assert "20 classes of 101 with the lowest F1" in caplog.text
    assert "1 x class1 taken for class7" in caplog.text
    assert "| class50 " not in caplog.text


def test_classes_of_one_name_are_told_apart_by_their_number(dataset):
    results = evaluate(dataset(SAMPLES, classes=("crane", "crane")))
    assert results["f1-crane (0)"] == results["f1-crane (1)"] == pytest.approx(200 / 3)


def test_files_are_written_to_the_output_folder_only(pets, tmp_path):
    results = evaluate(pets, output_dir=str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "classification_predictions.json").read_text())
    assert rows[2] == {"id": 2, "label": 1, "pred_label": 0, "score": pytest.approx(0.6)}
    content = json.loads((tmp_path / "out" / "classification_metrics.json").read_text())
    assert content["metrics"]["top1"] == results["top1"]
    assert content["per_class"]["cat"] == pytest.approx({"precision": 50, "recall": 100, "f1": 200 / 3, "support": 1})
    table = (tmp_path / "out" / "confusion_matrix.csv").read_text().splitlines()
    assert table == ["label \\ prediction,cat,dog", "cat,1,0", "dog,1,1"]
    evaluate(pets)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_classes_may_be_known_only_after_loading(dataset):
    name = dataset([])
    DatasetCatalog.pop(name)
    DatasetCatalog.register(name, lambda: MetadataCatalog.get(name).set(classes=("cat", "dog")) and SAMPLES)
    assert evaluate(name)["top1"] == pytest.approx(200 / 3)


def test_dataset_without_names_of_classes_is_refused(dataset):
    with pytest.raises(DatasetError, match="has no names of classes; set MetadataCatalog"):
        ClassificationEvaluator(dataset([]))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image_id": 9}, "the sample 9 has no 'label', neither in the input of the model nor in the dataset"),
        ({"image_id": 9, "labels": [0]}, "has 'labels': set evaluator_type to 'multi_label_classification'"),
        ({}, "the sample None has no 'label'"),
        ({"image_id": 9, "label": 2}, "sample 9 has the label 2, but .* has 2 classes, numbered from 0"),
        ({"image_id": 9, "label": -1}, "has the label -1"),
    ],
)
def test_missing_and_wrong_labels_are_named(pets, sample, message):
    with pytest.raises(DatasetError, match=message):
        ClassificationEvaluator(pets).process([sample], outputs_of(SCORES[:1]))


def test_model_of_other_classes_is_named(pets):
    with pytest.raises(DatasetError, match=r"gives 3 scores per image.*2 classes; set MODEL.CLASSIFIER.NUM_CLASSES: 2"):
        ClassificationEvaluator(pets).process(SAMPLES[:1], [{"pred_score": torch.zeros(3)}])
    with pytest.raises(DatasetError, match="predicted the classes 5 to 5"):
        ClassificationEvaluator(pets).process(SAMPLES[:1], [{"pred_label": 5}])


def test_outputs_of_another_number_than_inputs_are_an_error(pets):
    with pytest.raises(ValueError, match="zip"):
        ClassificationEvaluator(pets).process(SAMPLES, outputs_of(SCORES[:2]))


@pytest.mark.parametrize("kind", [ClassificationEvaluator, MultiLabelEvaluator])
def test_model_without_classes_has_no_results(dataset, kind, caplog):
    samples = [{"image_id": 0, "label": 0, "labels": [0]}]
    evaluator = kind(dataset(samples, classes=("cat",)))
    evaluator.process(samples, [{"instances": []}])
    assert evaluator.evaluate() is None
    assert "no 'pred_score'" in caplog.text


@pytest.mark.parametrize("kind", [ClassificationEvaluator, MultiLabelEvaluator])
def test_no_image_is_an_error(pets, kind):
    evaluator = kind(pets)
    evaluator.process([], [])
    with pytest.raises(DatasetError, match="on no image"):
        evaluator.evaluate()


def evaluate_multi_label(name, samples=MULTI_LABEL_SAMPLES, labels=None, **kwargs):
    outputs = [{"pred_score": torch.tensor(row)} for row in SCORES]
    if labels is not None:
        outputs = [{**output, "pred_label": label} for output, label in zip(outputs, labels, strict=True)]
    evaluator = MultiLabelEvaluator(name, **kwargs)
    evaluator.process(samples, outputs)
    return evaluator.evaluate()["multi_label_classification"]


def test_multi_label_metrics(multi_label_pets):
    results = evaluate_multi_label(multi_label_pets)
    # cat: scores .9, .2, .6 and targets 1, 0, 1; dog: .1, .8, .4 and 0, ignored, 1.
    assert (results["AP-cat"], results["AP-dog"], results["mAP"]) == (100, 100, 100)
    # At 0.5, both cats are found, and no dog; the dog of image 1 does not count.
    assert (results["CP"], results["CR"], results["CF1"]) == (50, 50, pytest.approx(50))
    assert (results["OP"], results["OR"], results["OF1"]) == (100, pytest.approx(200 / 3), pytest.approx(80))


def test_mean_average_precision_leaves_out_classes_in_no_image(dataset):
    samples = [{"image_id": i, "labels": [0]} for i in range(3)]
    results = evaluate_multi_label(dataset(samples, classes=("cat", "dog")), samples)
    assert results["mAP"] == 100
    assert math.isnan(results["AP-dog"])


def test_predicted_classes_are_those_of_the_model_unless_told_otherwise(multi_label_pets):
    labels = [[0], [], [0, 1]]
    assert evaluate_multi_label(multi_label_pets, labels=labels)["OF1"] == pytest.approx(100)
    assert evaluate_multi_label(multi_label_pets, labels=labels, thr=0.5)["OF1"] == pytest.approx(80)
    assert evaluate_multi_label(multi_label_pets, labels=labels, topk=2)["OR"] == 100
    assert evaluate_multi_label(multi_label_pets, labels=[0, 1, 0])["OR"] == pytest.approx(200 / 3)


def test_multi_labels_that_the_mapper_dropped_come_from_the_dataset(multi_label_pets):
    samples = [{"image_id": i} for i in range(3)]
    expected = evaluate_multi_label(multi_label_pets)
    assert evaluate_multi_label(multi_label_pets, samples) == expected


def test_multi_label_files_are_written(multi_label_pets, tmp_path):
    evaluate_multi_label(multi_label_pets, output_dir=str(tmp_path))
    rows = json.loads((tmp_path / "multi_label_predictions.json").read_text())
    assert rows[2] == {"id": 2, "labels": [0, 1], "pred_labels": [0], "scores": pytest.approx([0.6, 0.4])}
    content = json.loads((tmp_path / "multi_label_metrics.json").read_text())
    assert content["per_class"]["dog"] == {"AP": 100, "precision": 0, "recall": 0, "f1": 0, "support": 1}


def test_single_label_dataset_is_told_from_a_multi_label_one(pets):
    with pytest.raises(DatasetError, match=r"has no 'labels'.* set evaluator_type to 'image_classification'"):
        MultiLabelEvaluator(pets).process(SAMPLES[:1], outputs_of(SCORES[:1]))


@pytest.mark.parametrize(
    ("evaluator_type", "head", "metrics"),
    [
        ("image_classification", "LinearClsHead", {"classification": {"top1", "precision", "recall", "f1"}}),
        (
            "multi_label_classification",
            "MultiLabelLinearClsHead",
            {"multi_label_classification": {"mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"}},
        ),
    ],
)
def test_classifiers_are_evaluated_by_the_type_of_the_dataset(tiny_cfg, dataset, evaluator_type, head, metrics):
    tiny_cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    tiny_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    tiny_cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    tiny_cfg.MODEL.CLASSIFIER.NUM_CLASSES = 2
    tiny_cfg.MODEL.CLASSIFIER.HEAD.NAME = head
    if head != "LinearClsHead":
        tiny_cfg.MODEL.CLASSIFIER.HEAD.LOSS = {"NAME": "CrossEntropyLoss", "USE_SIGMOID": True}
    samples = [{"image_id": i, "label": i % 2, "labels": [i % 2]} for i in range(4)]
    name = dataset(samples, classes=("cat", "dog"), evaluator_type=evaluator_type)
    batches = [[{**sample, "image": torch.full((3, 32, 32), 80.0 * sample["image_id"])}] for sample in samples]
    results = inference_on_dataset(build_model(tiny_cfg), batches, build_evaluator(tiny_cfg, name))
    assert {task: {m for m in values if "-" not in m} for task, values in results.items()} == metrics

import numpy as np
import pytest

from detlib.data import transforms as T


def black(height=4, width=6):
    return np.zeros((height, width, 3), dtype=np.uint8)


class ShiftRightBy(T.Transform):
    def __init__(self, pixels):
        super().__init__()
        self.pixels = pixels

    def apply_image(self, img):
        return np.roll(img, self.pixels, axis=1)

    def apply_coords(self, coords):
        coords[:, 0] += self.pixels
        return coords


class ShiftByNumberOfBoxes(T.Augmentation):
    def get_transform(self, image, boxes):
        return ShiftRightBy(len(boxes))


def test_augmentation_sees_the_attributes_that_its_arguments_name():
    aug_input = T.AugInput(black(), boxes=np.array([[0.0, 0, 1, 1], [1, 1, 2, 2]]))
    assert ShiftByNumberOfBoxes()(aug_input).pixels == 2
    assert aug_input.boxes.tolist() == [[2, 0, 3, 1], [3, 1, 4, 2]]


def test_only_argument_of_another_name_is_the_image():
    class Old(T.TransformGen):
        def get_transform(self, img):
            return ShiftRightBy(img.shape[1])

    assert Old()(T.AugInput(black(width=6))).pixels == 6


def test_missing_input_is_named():
    class NeedsDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match=r"NeedsDepth needs image, depth.*no depth"):
        NeedsDepth()(T.AugInput(black()))


def test_input_args_replace_the_signature():
    class TakesAnything(T.Augmentation):
        input_args = ("image", "boxes")

        def get_transform(self, *args):
            return ShiftRightBy(len(args))

    assert TakesAnything()(T.AugInput(black())).pixels == 2


def test_unknown_inputs_of_star_args_are_refused():
    class TakesAnything(T.Augmentation):
        def get_transform(self, *args):
            return T.NoOpTransform()

    with pytest.raises(TypeError, match="input_args"):
        TakesAnything()(T.AugInput(black()))


def test_policy_that_returns_no_transform_is_refused():
    class Forgetful(T.Augmentation):
        def get_transform(self, image):
            pass

    with pytest.raises(TypeError, match="Forgetful"):
        Forgetful()(T.AugInput(black()))


def test_list_applies_in_turn_and_takes_plain_transforms():
    image = black(4, 6)
    image[0, 0] = 255
    aug_input = T.AugInput(image, boxes=np.array([[0.0, 0, 1, 1]]))
    transforms = T.AugmentationList([T.Resize((8, 12), interp=0), T.HFlipTransform(12)])(aug_input)
    assert aug_input.image.shape == (8, 12, 3)
    assert aug_input.image[:2, 10:].min() == 255
    assert aug_input.boxes.tolist() == [[10, 0, 12, 2]]
    assert transforms.apply_box(np.array([[0.0, 0, 1, 1]])).tolist() == [[10, 0, 12, 2]]


def test_apply_augmentations_takes_an_image_or_an_input():
    image, transforms = T.apply_augmentations([T.Resize((8, 12))], black())
    assert image.shape == (8, 12, 3)
    assert len(transforms) == 1
    aug_input, _ = T.apply_augmentations([T.Resize((8, 12))], T.AugInput(black()))
    assert aug_input.image.shape == (8, 12, 3)


def test_something_else_in_a_list_is_refused():
    with pytest.raises(TypeError, match="Augmentation or a Transform"):
        T.AugmentationList([lambda image: image])


@pytest.mark.parametrize(
    "image", [[[0, 0]], np.zeros((2, 2), dtype=np.int64), np.zeros((1, 2, 2, 3), dtype=np.uint8)], ids=type
)
def test_input_that_is_no_image_is_refused(image):
    with pytest.raises((TypeError, ValueError), match="image"):
        T.AugInput(image)


def test_init_of_old_projects_sets_attributes():
    class Old(T.Augmentation):
        def __init__(self, low, high=3):
            super().__init__()
            self._init(locals())

    assert repr(Old(1)) == "Old(low=1, high=3)"


def test_input_may_hold_more_in_a_subclass():
    class WithDepth(T.AugInput):
        def __init__(self, image, depth):
            super().__init__(image)
            self.depth = depth

        def transform(self, tfm):
            super().transform(tfm)
            self.depth = tfm.apply_segmentation(self.depth)

    aug_input = WithDepth(black(2, 2), np.array([[1.0, 2.0], [3.0, 4.0]]))
    aug_input.apply_augmentations([T.HFlipTransform(2)])
    assert aug_input.depth.tolist() == [[2, 1], [4, 3]]

import inspect

import pytest

from detlib.config import CfgNode, configurable, get_cfg


class Head:
    @configurable
    def __init__(self, channels, *, num_classes=1, norm=""):
        self.arguments = (channels, num_classes, norm)

    @classmethod
    def from_config(cls, cfg, channels):
        return {"channels": channels, "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES}


def test_explicit_arguments_pass_through():
    assert Head(4, num_classes=3).arguments == (4, 3, "")


@pytest.mark.parametrize("make", [lambda cfg: Head(cfg, 4), lambda cfg: Head(cfg=cfg, channels=4)])
def test_config_comes_first_or_by_name(make):
    assert make(get_cfg()).arguments == (4, 80, "")


def test_arguments_beside_the_config_override_it():
    assert Head(get_cfg(), 4, num_classes=7, norm="GN").arguments == (4, 7, "GN")


def test_signature_shows_the_explicit_arguments():
    assert list(inspect.signature(Head).parameters) == ["channels", "num_classes", "norm"]


def test_subclass_may_extend_the_arguments():
    class Wider(Head):
        @configurable
        def __init__(self, width, **kwargs):
            super().__init__(**kwargs)
            self.width = width

        @classmethod
        def from_config(cls, cfg, channels):
            return {"width": 2, **super().from_config(cfg, channels)}

    head = Wider(get_cfg(), 4)
    assert (head.width, head.arguments) == (2, (4, 80, ""))


def test_any_yacs_config_counts():
    cfg = CfgNode({"MODEL": {"RETINANET": {"NUM_CLASSES": 5}}})
    assert Head(cfg, 4).arguments == (4, 5, "")


def test_argument_that_the_constructor_does_not_take_is_named_with_its_class():
    class Narrow:
        @configurable
        def __init__(self, *, num_classes):
            pass

        @classmethod
        def from_config(cls, cfg):
            return {"num_classes": 3, "num_clases": 4}

    with pytest.raises(TypeError, match=r"Narrow got .*\['num_clases'\]; it takes num_classes"):
        Narrow(get_cfg())


def test_function_takes_a_config_in_place_of_its_arguments():
    @configurable(from_config=lambda cfg, model: {"model": model, "lr": cfg.SOLVER.BASE_LR})
    def build(model, lr, momentum=0.0):
        return model, lr, momentum

    cfg = get_cfg()
    assert build("m", 0.1) == ("m", 0.1, 0.0)
    assert build(cfg, "m") == ("m", 0.001, 0.0)
    assert build(cfg, "m", lr=0.5, momentum=0.9) == ("m", 0.5, 0.9)


def test_from_config_with_kwargs_gets_all_arguments():
    @configurable(from_config=lambda cfg, **kwargs: {"names": sorted(kwargs)})
    def build(names):
        return names

    assert build(get_cfg(), a=1, b=2) == ["a", "b"]


def test_misuse_is_explained():
    with pytest.raises(TypeError, match="use @configurable on __init__"):
        configurable(lambda: None)
    with pytest.raises(TypeError, match="needs a function"):
        configurable(from_config=3)

    class Without:
        @configurable
        def __init__(self, a):
            pass

    with pytest.raises(TypeError, match="Without is @configurable and needs a class method from_config"):
        Without(get_cfg())


def test_first_argument_of_from_config_is_named_cfg():
    @configurable(from_config=lambda config: {})
    def build():
        pass

    with pytest.raises(TypeError, match="must be named cfg"):
        build(get_cfg())

import pytest

from detlib.config import build_component, get_cfg
from detlib.utils.errors import ConfigError, ConfigTypeError, UnknownNameError
from detlib.utils.registry import Registry

PARTS = Registry("PART")


@PARTS.register()
class Loss:
    def __init__(self, beta: float = 1.0, loss_weight: float = 1.0, steps: int = 2) -> None:
        self.beta, self.loss_weight, self.steps = beta, loss_weight, steps


@PARTS.register()
class Neck:
    def __init__(self, in_channels: int, out_channels: int, *, norm: str = "") -> None:
        self.in_channels, self.out_channels, self.norm = in_channels, out_channels, norm


@PARTS.register()
class WideNeck(Neck):
    def __init__(self, factor: int = 2, **kwargs) -> None:
        super().__init__(**kwargs)
        self.factor = factor


@PARTS.register()
def anything(**kwargs):
    return kwargs


def test_other_keys_are_arguments_in_lower_case():
    loss = build_component(PARTS, {"NAME": "Loss", "BETA": 0.5, "LOSS_WEIGHT": 2.0})
    assert (type(loss), loss.beta, loss.loss_weight) == (Loss, 0.5, 2.0)


def test_integer_becomes_float_where_the_default_is_one():
    loss = build_component(PARTS, {"NAME": "Loss", "LOSS_WEIGHT": 2, "STEPS": 3})
    assert (type(loss.loss_weight), type(loss.steps)) == (float, int)


def test_what_the_caller_offers_is_taken_where_it_fits_and_the_node_wins():
    neck = build_component(PARTS, {"NAME": "Neck", "OUT_CHANNELS": 8}, in_channels=4, out_channels=5, num_classes=3)
    assert (neck.in_channels, neck.out_channels) == (4, 8)


def test_arguments_reach_the_parent_class_through_kwargs():
    neck = build_component(PARTS, {"NAME": "WideNeck", "OUT_CHANNELS": 8, "FACTOR": 3}, in_channels=4)
    assert (neck.in_channels, neck.out_channels, neck.factor) == (4, 8, 3)


def test_what_a_class_gives_to_its_parent_itself_is_not_asked_for():
    @PARTS.register("NeckOfFour")
    class NeckOfFour(Neck):
        def __init__(self, **kwargs) -> None:
            super().__init__(in_channels=4, out_channels=4, **kwargs)

    assert build_component(PARTS, {"NAME": "NeckOfFour", "NORM": "BN"}).norm == "BN"


def test_list_of_nodes_builds_a_list():
    parts = build_component(PARTS, [{"NAME": "Loss"}, {"NAME": "Loss", "BETA": 2}])
    assert [part.beta for part in parts] == [1.0, 2.0]


def test_object_comes_back_as_it_is():
    loss = Loss()
    assert build_component(PARTS, loss) is loss
    assert build_component(PARTS, [loss]) == [loss]


def test_part_that_takes_anything_gets_the_keys_but_no_offers():
    assert build_component(PARTS, {"NAME": "anything", "A": 1}, in_channels=4) == {"a": 1}


def test_node_of_a_config_is_copied_so_that_the_part_cannot_change_it():
    cfg = get_cfg()
    cfg.MODEL.NECK = {"NAME": "anything", "SIZES": [1, 2]}
    build_component(PARTS, cfg.MODEL.NECK)["sizes"].append(3)
    assert cfg.MODEL.NECK.SIZES == [1, 2]


def test_unknown_argument_is_named_with_the_closest_and_the_place():
    cfg = get_cfg()
    cfg.MODEL.RETINANET.LOSS_BBOX = {"NAME": "Loss", "BETTA": 0.5}
    with pytest.raises(ConfigTypeError) as error:
        build_component(PARTS, cfg.MODEL.RETINANET.LOSS_BBOX)
    message = str(error.value)
    assert message.startswith("MODEL.RETINANET.LOSS_BBOX: Loss takes no BETTA; did you mean BETA?")
    assert "BETA, LOSS_WEIGHT, STEPS" in message and "_DELETE_" in message
    assert isinstance(error.value, TypeError)


def test_missing_argument_is_named():
    with pytest.raises(ConfigTypeError, match="Neck needs OUT_CHANNELS"):
        build_component(PARTS, {"NAME": "Neck"}, in_channels=4)


def test_unknown_name_lists_the_known_and_the_closest():
    with pytest.raises(UnknownNameError, match=r"did you mean 'Neck'.*Known: Loss, Neck.*CUSTOM_IMPORTS"):
        build_component(PARTS, {"NAME": "Nekk"})


def test_node_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="needs a NAME; it has OUT_CHANNELS"):
        build_component(PARTS, {"OUT_CHANNELS": 3})


# Sections that name a part


def test_part_takes_any_key_from_a_file(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "MODEL: {NECK: {NAME: Neck, OUT_CHANNELS: 8, DEEP: {NAME: Loss, BETA: 1}}}"))
    assert cfg.MODEL.NECK == {"NAME": "Neck", "OUT_CHANNELS": 8, "DEEP": {"NAME": "Loss", "BETA": 1}}


def test_part_takes_any_key_from_the_command_line():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.NECK.NAME=Neck", "MODEL.NECK.OUT_CHANNELS=8", "MODEL.NECK.LOSS.BETA", "0.5"])
    assert cfg.MODEL.NECK == {"NAME": "Neck", "OUT_CHANNELS": 8, "LOSS": {"BETA": 0.5}}


def test_whole_part_can_be_given_on_the_command_line():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.NECK={NAME: Neck, OUT_CHANNELS: 8}"])
    assert cfg.MODEL.NECK == {"NAME": "Neck", "OUT_CHANNELS": 8}


def test_node_within_a_part_can_be_given_on_the_command_line():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.CLASSIFIER.HEAD.LOSS", "{NAME: Loss, BETA: 2}"])
    assert cfg.MODEL.CLASSIFIER.HEAD == {"NAME": "LinearClsHead", "LOSS": {"NAME": "Loss", "BETA": 2}}


def test_values_of_a_part_may_change_their_type(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "MODEL: {NECK: {NAME: Neck, WEIGHT: 2}}"))
    cfg.merge_from_list(["MODEL.NECK.WEIGHT", "0.5"])
    assert cfg.MODEL.NECK.WEIGHT == 0.5


def test_other_sections_still_refuse_unknown_keys(write):
    with pytest.raises(ConfigError, match="NUM_CLASES"):
        get_cfg().merge_from_file(write("a.yaml", "MODEL: {RETINANET: {NUM_CLASES: 3}}"))


def test_part_survives_dump_and_clone(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.NECK = {"NAME": "Neck", "SIZES": (1, 2), "DEEP": {"A": [1.5]}}
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(path))
    assert again == cfg
    clone = again.clone()
    clone.MODEL.NECK.MORE = 3
    assert "MORE" not in again.MODEL.NECK


def test_frozen_part_cannot_change():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="frozen"):
        cfg.MODEL.NECK.NAME = "Neck"


def test_key_in_capitals_and_small_letters_is_refused():
    with pytest.raises(ConfigError, match="has a key twice, in capitals and in small letters: NAME, BETA, beta"):
        build_component(PARTS, {"NAME": "Loss", "BETA": 1.0, "beta": 2.0})


@pytest.mark.parametrize("node", ["Loss", ["Loss"]])
def test_name_alone_is_refused(node):
    with pytest.raises(ConfigError, match=r"a part of the registry PART must be a node, as {NAME: Loss}; got 'Loss'"):
        build_component(PARTS, node)


@pytest.mark.parametrize("name", [3, ["Loss"], {"NAME": "Loss"}])
def test_name_that_is_no_text_is_unknown(name):
    with pytest.raises(UnknownNameError, match=r"PART has no .*Known: Loss"):
        build_component(PARTS, {"NAME": name})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("BETA", "two", "BETA as float; got 'two'"),
        ("BETA", None, "BETA as float; got None"),
        ("STEPS", 2.5, "STEPS as int"),
    ],
)
def test_value_of_another_type_than_declared_is_refused(key, value, said):
    with pytest.raises(ConfigTypeError, match=f"a part of the registry PART: Loss takes {said}"):
        build_component(PARTS, {"NAME": "Loss", key: value})


def test_text_for_a_float_is_refused_also_where_no_type_is_declared():
    registry = Registry("PART")

    @registry.register()
    def user_loss(loss_weight=1.0):
        return loss_weight

    assert build_component(registry, {"NAME": "user_loss", "LOSS_WEIGHT": 2}) == 2.0
    with pytest.raises(ConfigTypeError, match="user_loss takes LOSS_WEIGHT as float; got 'x'"):
        build_component(registry, {"NAME": "user_loss", "LOSS_WEIGHT": "x"})


def test_types_that_are_not_single_are_left_to_the_part():
    registry = Registry("PART")

    @registry.register()
    def pooled(size: int | tuple[int, int], mode="sum", scale: float | None = 1.0):
        return size, mode, scale

    assert build_component(registry, {"NAME": "pooled", "SIZE": [1, 2], "MODE": 3, "SCALE": None}) == ([1, 2], 3, None)


@pytest.mark.parametrize(
    ("value", "said"),
    [("GIoULoss", "is a section that names a part: write {NAME: GIoULoss}"), (None, "as {NAME: X}; for none write")],
)
def test_part_that_is_no_section_is_explained(value, said):
    with pytest.raises(ConfigError, match=f"MODEL.RETINANET.LOSS_BBOX .*{said}"):
        get_cfg().merge_from_other_cfg({"MODEL": {"RETINANET": {"LOSS_BBOX": value}}})


def test_part_may_be_set_to_itself():
    cfg = get_cfg()
    cfg.MODEL.NECK = {"NAME": "Neck", "DEEP": {"A": 1}}
    cfg.MODEL.NECK = cfg.MODEL.NECK
    assert cfg.MODEL.NECK == {"NAME": "Neck", "DEEP": {"A": 1}}


def test_unknown_name_of_a_node_tells_where_it_stands():
    cfg = get_cfg()
    cfg.MODEL.RETINANET.LOSS_BBOX = {"NAME": "Los"}
    with pytest.raises(UnknownNameError, match=r"^MODEL.RETINANET.LOSS_BBOX: PART has no 'Los'; did you mean 'Loss'"):
        build_component(PARTS, cfg.MODEL.RETINANET.LOSS_BBOX)

import pytest
import torch

from detlib.modeling.self_supervised.target_generators import DALLEEncoder
from detlib.utils.errors import CheckpointError, ConfigError, MissingFileError

TINY = {"vocab_size": 16, "hid_channels": 8}


def published_names(state_dict):
    return {name.replace("weight", "w").replace("bias", "b"): weight for name, weight in state_dict.items()}


def images(num_images=2, size=32):
    return torch.randint(0, 256, (num_images, 3, size, size), generator=torch.Generator().manual_seed(0))


def test_112_pixels_are_14_x_14_words():
    assert DALLEEncoder(**TINY)(images(1, 112)).shape == (1, 14, 14)


def test_words_are_those_of_the_vocabulary_and_differ_between_patches():
    words = DALLEEncoder(**TINY)(images())
    assert words.dtype == torch.int64
    assert words.min() >= 0 and words.max() < 16
    assert len(words.unique()) > 2


def test_words_are_the_same_in_mixed_precision():
    encoder = DALLEEncoder(hid_channels=8, vocab_size=4096)  # so many words that the best are close to each other
    words = encoder(images(4, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(images(4, 64)), words)


def test_published_layers():
    with torch.device("meta"):
        weights = published_names(DALLEEncoder().state_dict())
    assert len(weights) == 2 * (1 + 8 * 4 + 3 + 1)  # input, branches, shortcuts of the groups that widen, output
    assert weights["blocks.input.w"].shape == (256, 3, 7, 7)
    assert weights["blocks.group_1.block_1.res_path.conv_1.w"].shape == (64, 256, 3, 3)
    assert weights["blocks.group_2.block_1.id_path.w"].shape == (512, 256, 1, 1)
    assert weights["blocks.group_4.block_2.res_path.conv_4.w"].shape == (2048, 512, 1, 1)
    assert weights["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)


def test_pixels_are_mapped_to_a_tenth_to_nine_tenths():
    encoder = DALLEEncoder(**TINY)
    seen = []
    encoder.blocks["input"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder(torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1).expand(-1, -1, 8, 8))
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([0.1, 0.5, 0.9]))


def test_branch_counts_a_64th():
    block = DALLEEncoder(**TINY).blocks["group_1"]["block_1"]
    x = torch.rand(1, 8, 4, 4)
    torch.testing.assert_close(block(x), x + block.res_path(x) / 64)


def test_words_are_scored_after_a_relu():
    encoder = DALLEEncoder(**TINY)
    seen = []
    encoder.blocks["output"]["conv"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder(images())
    assert seen[0].min() == 0 and seen[0].max() > 0


def test_random_weights_have_the_variance_of_one_over_their_inputs():
    weight = DALLEEncoder(hid_channels=32, vocab_size=16).blocks["group_4"]["block_1"].res_path.conv_2.weight
    assert weight.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.02)


def test_random_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    first = DALLEEncoder(**TINY)
    torch.manual_seed(2)
    second, other = DALLEEncoder(**TINY), DALLEEncoder(seed=3, **TINY)
    assert torch.equal(first(images()), second(images()))
    assert not torch.equal(first(images()), other(images()))


def test_random_weights_are_warned_of(caplog):
    DALLEEncoder(**TINY)
    assert "words to predict are those of a random network" in caplog.text


def test_nothing_of_it_learns():
    encoder = DALLEEncoder(**TINY)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(images().float().requires_grad_()).requires_grad


@pytest.mark.parametrize("rename", [dict, published_names])
def test_weights_of_a_file_are_read_under_published_and_own_names(tmp_path, rename):
    encoder = DALLEEncoder(seed=5, **TINY)
    torch.save(rename(encoder.state_dict()), tmp_path / "encoder.pth")
    loaded = DALLEEncoder(str(tmp_path / "encoder.pth"), **TINY)
    assert torch.equal(loaded(images()), encoder(images()))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_file_of_another_width_is_an_error(tmp_path):
    torch.save(DALLEEncoder(**TINY).state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=r"lacks 73 of 74 .* other shapes, blocks\.input\.weight first"):
        DALLEEncoder(str(tmp_path / "encoder.pth"), hid_channels=16, vocab_size=16)


def test_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(MissingFileError, match=r"TARGET_GENERATOR\.WEIGHTS: .*encoder\.pth does not exist"):
        DALLEEncoder(str(tmp_path / "encoder.pth"), **TINY)


def test_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "encoder.pkl")
    with pytest.raises(CheckpointError, match="no weights that are safe to read"):
        DALLEEncoder(str(tmp_path / "encoder.pkl"), **TINY)


def test_width_that_branches_cannot_have_a_quarter_of_is_an_error():
    with pytest.raises(ConfigError, match="HID_CHANNELS is 6; it must be a multiple of 4"):
        DALLEEncoder(hid_channels=6)

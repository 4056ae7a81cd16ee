import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from uae_lightning.rewards.efficientnet_lite import STAGES, EfficientNetLite0, SameConv2d, fuse_norms
from uae_lightning.scenes.scene import _glyph_file

# What ImageNet may call a cartoon of it: analog clock; umbrella; screen, television; yawl.
IMAGENET = {
    ("clock", "large"): {409}, ("umbrella", "large"): {879}, ("tv", "large"): {782, 851}, ("boat", "small"): {914}
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0.pretrained()


def test_glyphs_are_what_imagenet_calls_them(network):
    # Red if 127 becomes 12, or relu6 of a block becomes relu; a missing or extra weight fails the strict load.
    pictures = []
    for look in IMAGENET:
        glyph = _glyph_file(*look).resize((180, 180), Image.Resampling.BICUBIC)
        canvas = Image.new("RGBA", (224, 224), "white")
        canvas.paste(glyph, (22, 22), glyph)
        pictures.append(torch.from_numpy(np.array(canvas.convert("RGB"))).permute(2, 0, 1) / 255)
    with torch.no_grad():
        answers = network(torch.stack(pictures)).argmax(1).tolist()
    assert [a in plausible for a, plausible in zip(answers, IMAGENET.values(), strict=True)] == [True] * 4, answers


def test_shapes_of_the_feature_maps(network):
    # Red if the stride of any stage changes, or `index in` becomes `index not in`.
    with torch.no_grad():
        maps = network.feature_maps(torch.rand(1, 3, 128, 128))
    assert [m.shape[1] for m in maps] == [stage[-1] for stage in STAGES] + [1280]
    assert [m.shape[2] for m in maps] == [64, 32, 16, 8, 8, 4, 4, 4]


@pytest.mark.parametrize("length, kernel, stride, pad", [(8, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (8, 5, 1, (2, 2))])
def test_same_padding_puts_the_odd_pixel_last(length, kernel, stride, pad):
    # Red if `total // 2, total - total // 2` is turned round, or kernel - length becomes kernel + length.
    conv = SameConv2d(1, 1, kernel, stride=stride, bias=False)
    x = torch.randn(1, 1, length, length, generator=torch.Generator().manual_seed(0))
    expected = F.conv2d(F.pad(x, (*pad, *pad)), conv.weight, stride=stride)
    torch.testing.assert_close(conv(x), expected)
    assert expected.shape[-1] == -(-length // stride)


def test_fused_norms_change_nothing():
    # Red if a pair of `fuse_norms` names another norm.
    torch.manual_seed(0)
    network, pictures = EfficientNetLite0().eval(), torch.rand(2, 3, 64, 64)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)
            torch.nn.init.uniform_(module.bias, 0.5, 2.0)
    with torch.no_grad():
        before = network.feature_maps(pictures)
        fuse_norms(network)
        after = network.feature_maps(pictures)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
        assert one.std() > 0.01

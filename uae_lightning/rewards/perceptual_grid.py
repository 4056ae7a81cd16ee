"""PerceptualGrid: the reward of the embedded default, a network that knows ImageNet and nothing of our scenes.

A pooled embedding hardly sees where things are (it ranked scenes with two objects swapped below the true ones only 72
times in 100). Pooling over a grid of places at every stage of the network keeps colours, shapes and places: 98 in 100
over all kinds of faults with 2 x 2 (ours, measured on 700 scenes).

The network is very sensitive to faint texture on flat ground: the true scene through an 8 x 8 patch codec at 30 dB, or
with noise of 0.02, scores below a crisp scene with a wrong class. So both pictures are first reduced to 32 px, which
takes the texture out, and then get the same faint noise, in which the rest of it drowns. The true scene after noise
*and* codec then beats crisp scenes with one wrong fact 96 times in 100 instead of 22 (ours, 64 scenes x 5 faults).

The noise also makes the reward even-handed. A network sees an object at half strength nearly as well as a whole one, so
that half an added object costs far more than half a missing one (twice as much with noise of 0.05), and a decoder that
smears is paid for leaving things out. Noise of 0.1 drowns the faint half: both cost the same (`fault_costs`).
"""

from __future__ import annotations

from uae_lightning.ranges import Count, NonNegative, checked
from uae_lightning.rewards.feature_maps import EfficientNetMaps
from uae_lightning.rewards.layered_similarity import LayeredSimilarity, Level


@checked
class PerceptualGrid(LayeredSimilarity):
    """Mean cosine of EfficientNet-Lite0 features over cells x cells places, 7 stages and the head.

    Args:
        cells: places along each side.
        image_size: px the network sees; a multiple of 32.
        micro_batch: pictures at a time.
        detail: px the pictures are reduced to before that; `image_size` keeps all detail.
        dither: standard deviation of the noise, the same on every picture; 0 is none.
    """

    def __init__(
        self,
        cells: Count = 3,
        image_size: Count = 96,
        micro_batch: Count = 32,
        detail: Count = 32,
        dither: NonNegative = 0.1,
    ) -> None:
        network = EfficientNetMaps(image_size, detail, dither)
        levels = {"perceptual_grid": Level(list(range(len(network.widths))))}
        super().__init__(network, levels, cells, micro_batch)


@checked
class PooledEfficientNet(LayeredSimilarity):
    """Cosine of EfficientNet-Lite0's pooled head, the 1280 features its ImageNet classes are read from.

    The network is that of the reward PerceptualGrid, which compares all its stages by place: as a judge of a run with
    that reward it is not independent. It sees pictures reduced and dithered as there; otherwise the true scene, worn,
    scored below 95 in 100 crisp scenes with a wrong object (ours, 96 scenes), and with it above 85 in 100.
    """

    def __init__(self, image_size: Count = 128, micro_batch: Count = 32) -> None:
        levels = {"efficientnet_lite0": Level([-1])}
        super().__init__(EfficientNetMaps(image_size), levels, cells=1, micro_batch=micro_batch)

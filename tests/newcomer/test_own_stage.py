"""A newcomer trains both parts in one step: one file, and one line of a stage's YAML."""

from safetensors.torch import load_file

from uae_lightning.run import folder as run_folder

STAGE = """
import torch

from uae_lightning.policies.captions import CaptionGRPO
from uae_lightning.policies.flow_grpo import FlowGRPO
from uae_lightning.stages.policy import PolicyStage, Rollout
from uae_lightning.types import RewardInput

class Both(PolicyStage):
    trained = ("encoder", "decoder")

    def __init__(self, *args, group_size: int = 2, micro_batch: int = 4, **parts):
        super().__init__(*args, updates_per_batch=1, **parts)
        options = {"group_size": group_size, "micro_batch": micro_batch}
        pictures = FlowGRPO(self.autoencoder, **options, window=(0, 1), sde="cps", noise_level=0.5)
        self.policies = {"captions": CaptionGRPO(self.autoencoder, **options), "pictures": pictures}

    @torch.no_grad()
    def rollout(self, batch):
        captions, pictures = self.policies.values()
        said = captions.act(batch.images, self)
        drawn = pictures.act(self.autoencoder.read(said.captions.texts), self)
        images = batch.images.repeat_interleave(captions.group_size * pictures.group_size, 0)
        texts = [text for text in said.captions.texts for _ in range(pictures.group_size)]
        return Rollout(batch, said.captions, [said, drawn], RewardInput(images, drawn.pictures, texts))

    def credit(self, rollout, scores):
        size = self.policies["pictures"].group_size
        of_captions = scores.each(lambda values: values.view(-1, size).amax(1))  # the best of its drawings
        return [self.compared("captions", of_captions), self.compared("pictures", scores)]
"""


def test_a_stage_that_trains_both_parts_is_a_file_and_a_line(newcomer, documented):
    # red where the loop, a callback or the hand-over of weights knows stages by name
    newcomer.write("both.py", STAGE)
    stage = newcomer.stage()
    kept = ("autoencoder", "optimizer")
    options = {name: value for name, value in stage["model"]["init_args"].items() if name in kept}
    rank = {"rank": 4, "alpha": 8}
    model = {"class_path": "both.Both", "init_args": options | {"learn": {"encoder": rank, "decoder": rank}}}
    newcomer.line(stage, "model", model)
    place = newcomer.run(stage)
    assert [row["step"] for row in run_folder.read_rows(place)] == [0, 2]
    for part, file in (("encoder", "adapter_model"), ("decoder", "pytorch_lora_weights")):
        adapters = load_file(place / "weights" / part / f"{file}.safetensors")
        assert any(tensor.any() for name, tensor in adapters.items() if "lora_B" in name)  # they start at zero
    assert len(newcomer.touched) == documented["a stage"]

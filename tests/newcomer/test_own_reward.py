"""A newcomer trains on another reward: one file, and one line of a stage's YAML."""

from uae_lightning.run import folder as run_folder

REWARD = """
from uae_lightning.interfaces import Reward
from uae_lightning.types import RewardInput, RewardOutput

class Greenness(Reward):
    def forward(self, inputs: RewardInput) -> RewardOutput:
        red, green, blue = inputs.reconstructions.float().mean((2, 3)).unbind(1)
        total = green - (red + blue) / 2
        return RewardOutput(total, {"greenness": total})
"""


def test_a_reward_is_a_file_and_a_line(newcomer, documented):
    # red where a reward is asked for more than `forward`, or known by name anywhere
    newcomer.write("greenness.py", REWARD)
    stage = newcomer.stage()
    newcomer.line(stage["trainer"]["callbacks"][0]["init_args"], "reward", {"class_path": "greenness.Greenness"})
    place = newcomer.run(stage)
    rows = run_folder.read_rows(place)
    assert [row["step"] for row in rows] == [0, 2] and rows[0]["reward_name"] == "Greenness"
    assert rows[0]["unrewarded_name"] == "PixelSimilarity" and rows[0]["reward"] != rows[0]["unrewarded"]
    assert (place / "weights" / "encoder").is_dir()
    assert len(newcomer.touched) == documented["a reward"]

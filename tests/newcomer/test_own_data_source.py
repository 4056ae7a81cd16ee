"""A newcomer trains on pictures of another kind: one file, and one line of a stage's YAML."""

from uae_lightning.run import folder as run_folder

DATA = '''
import lightning as L
import torch
from torch.utils.data import DataLoader

from uae_lightning.types import Batch

class Flat(L.LightningDataModule):
    """Pictures of one color each."""

    def __init__(self, pictures: int = 2) -> None:
        super().__init__()
        colors = torch.linspace(0, 1, pictures)[:, None, None, None].expand(-1, 3, 96, 96)
        self.batch = Batch(colors, ["a gray picture"] * pictures, [f"gray-{i}" for i in range(pictures)])

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * 100, collate_fn=lambda batches: batches[0])

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch], collate_fn=lambda batches: batches[0])
'''


def test_a_data_source_is_a_file_and_a_line(newcomer, documented):
    # red where a run asks the data for a seed, a batch size, scene graphs or a source on disk
    newcomer.write("flat.py", DATA)
    stage = newcomer.stage()
    newcomer.line(stage, "data", {"class_path": "flat.Flat"})
    rows = run_folder.read_rows(newcomer.run(stage))
    assert [row["step"] for row in rows] == [0, 2] and rows[0]["keys"] == ["gray-0", "gray-1"]
    assert len(newcomer.touched) == documented["a data source"]

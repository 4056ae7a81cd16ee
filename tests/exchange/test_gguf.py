"""The decoder in GGUF, read by the format's own reader and by diffusers; what is said without the package."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from uae_lightning.cli import main
from uae_lightning.exchange.gguf_file import write_gguf
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.scenes.scene import IMAGE_SIZE

INSTALLED = importlib.util.find_spec("gguf") is not None


class Small(nn.Module):
    """What a transformer has besides linear layers: vectors, tables, rows that are no whole blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow, self.norm = nn.Linear(64, 8), nn.Linear(24, 8), nn.LayerNorm(8)
        self.table, self.large = nn.Parameter(torch.randn(2, 64)), nn.Parameter(torch.full((2, 32), 1e6))
        self.half()
        self.large.data = self.large.data.float().fill_(1e6)


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_0", 0.15)])
def test_what_is_written_is_read_by_the_formats_own_reader(kind: str, error: float, tmp_path: Path):
    # red if tables or vectors are quantised, rows of 24 are padded, or large numbers become infinite
    gguf = pytest.importorskip("gguf")
    model = Small()
    write_gguf(tmp_path / "small.gguf", model, kind, "small")
    reader = gguf.GGUFReader(tmp_path / "small.gguf")
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"small"
    assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == {
        "wide.weight": kind, "narrow.weight": "F16", "wide.bias": "F32", "narrow.bias": "F32", "norm.weight": "F32",
        "norm.bias": "F32", "table": "F16", "large": "F32",
    }  # fmt: skip
    for tensor in reader.tensors:
        wanted = model.state_dict()[tensor.name].float()
        found = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).reshape(wanted.shape)
        allowed = error * wanted.abs().max() if tensor.tensor_type.name == kind else 0
        assert (found - wanted).abs().max() <= allowed, tensor.name


def test_diffusers_loads_what_is_written(parts_folder, tmp_path):
    # red if a tensor has another name or shape than in diffusers, or is left out
    pytest.importorskip("gguf")
    from diffusers import GGUFQuantizationConfig, SD3Transformer2DModel

    model = SD3Decoder(str(parts_folder / "decoder"), resolution=IMAGE_SIZE).transformer.eval()
    write_gguf(tmp_path / "decoder.gguf", model, "Q8_0", "sd3")
    options = {"config": str(parts_folder / "decoder"), "subfolder": "transformer", "dtype": torch.float32}
    loaded = SD3Transformer2DModel.from_single_file(
        str(tmp_path / "decoder.gguf"), quantization_config=GGUFQuantizationConfig(torch.float32), **options
    )
    size = model.config.sample_size
    inputs = {
        "hidden_states": torch.randn(1, model.config.in_channels, size, size),
        "encoder_hidden_states": torch.randn(1, 4, model.config.joint_attention_dim),
        "pooled_projections": torch.randn(1, model.config.pooled_projection_dim),
        "timestep": torch.tensor([500.0]),
    }
    with torch.no_grad():
        wanted, found = (one(**inputs, return_dict=False)[0] for one in (model, loaded))
    assert 0 < (found - wanted).abs().max() < 0.05 * wanted.std()


@pytest.mark.skipif(INSTALLED, reason="gguf is installed")
def test_without_the_package_it_is_named_before_anything_is_written(tmp_path, capsys):
    # red if it is looked for when the file is written
    assert main(["export", f"--weights={tmp_path}", f"--to={tmp_path / 'out'}", "--gguf=Q8_0"]) == 2
    assert "pip install 'uae-lightning[gguf]'" in capsys.readouterr().err and not list(tmp_path.iterdir())

"""`--trainer.strategy fsdp`: FSDP2 on Lightning's engine.

Lightning's own `FSDPStrategy` is FSDP1: it refuses CPUs, wants one dtype and one `requires_grad` in a unit, and wraps
the module. `ModelParallelStrategy` leaves the sharding to `Stage.configure_model`.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed import default_pg_timeout
from torch.optim import Optimizer

from uae_lightning.files import replacing_folder
from uae_lightning.parallel import sharded_checkpoint
from uae_lightning.parallel.checkpoint_io import read_checkpoint


class ShardedStrategy(ModelParallelStrategy):
    """All devices of all nodes share the weights of a stage; checkpoints are folders (`sharded_checkpoint`)."""

    lightning_restore_optimizer = True  # from what load_checkpoint returns, as other strategies do

    def __init__(self, timeout: timedelta = default_pg_timeout) -> None:
        """`timeout`: how long a device waits for the others in a collective before the run ends with an error."""
        super().__init__(tensor_parallel_size=1, timeout=timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ------------------------------------------------------------------------------------------------ state
    # The parent's versions, going through torch.distributed.checkpoint, stumble over the state of bitsandbytes' layers.

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: dict[str, Any], strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    # ------------------------------------------------------------------------------------------------ files

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("ShardedStrategy writes local files: it takes no storage_options")
        with replacing_folder(self.broadcast(filepath), self.is_global_zero, self.barrier) as folder:
            sharded_checkpoint.save_shards(checkpoint, folder, self.global_rank, self.world_size)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(self.broadcast(checkpoint_path), self.lightning_module)

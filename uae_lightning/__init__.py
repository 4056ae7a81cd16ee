"""uae-lightning: training code for "Unified Multimodal Model as Auto-Encoder" (arXiv 2509.09666)."""

__version__ = "0.1.0"

from uae_lightning.models import no_hub_kernels

no_hub_kernels.install()

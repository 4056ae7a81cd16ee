"""`uae export`: what a run trained, in the formats of transformers, diffusers, peft and ComfyUI."""

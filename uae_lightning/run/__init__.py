"""A run: its YAML, its folder, its stages by LightningCLI."""

"""The stages as LightningModules. They know interfaces, policies and algorithms, no model, reward or data set."""

"""The three stages as LightningModules. They know the interfaces and the algorithms, no model, reward or data set."""

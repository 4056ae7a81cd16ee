"""How well a picture survived the round trip. Every reward is an `interfaces.Reward`; several make a `WeightedSum`."""

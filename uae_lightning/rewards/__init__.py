"""How well a picture survived the round trip, and what its caption costs. Every reward is an `interfaces.Reward`;
several make a `WeightedSum`."""

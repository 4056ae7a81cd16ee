"""Who writes captions in the encoder's place: an `interfaces.Engine`, asked over a network."""

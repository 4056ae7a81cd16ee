"""What is trained by reward: each policy acts, and says how likely its acts were. No Lightning, no Trainer."""

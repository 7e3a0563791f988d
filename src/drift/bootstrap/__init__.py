"""How the default policy is made: a small language model with the flaws that multi-turn training is meant to mend."""

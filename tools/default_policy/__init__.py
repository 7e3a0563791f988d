"""How the default policy is made: a small language model with the flaws that multi-turn training is meant to fix.

Run ``python -m tools.default_policy --out DIR`` from the root of the repository; ``--help`` lists the settings.
"""

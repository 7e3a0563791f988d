"""Many methods and seeds on one recipe, side by side."""

from drift.comparison.run import compare as compare
from drift.comparison.run import run_comparison as run_comparison
from drift.comparison.settings import Comparison as Comparison
from drift.comparison.settings import load_comparison as load_comparison

"""Many methods and seeds on one recipe, side by side."""

from drift.compare.run import compare as compare
from drift.compare.settings import Comparison as Comparison
from drift.compare.settings import load_comparison as load_comparison

"""The parts of the recipe: how the demo world's models, log and figures are made."""

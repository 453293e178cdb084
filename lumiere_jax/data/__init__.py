"""Video data sets and the input pipeline."""

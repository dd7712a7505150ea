"""Side-by-side comparisons: same weights, same audio, interleaved rounds, medians and ratios."""

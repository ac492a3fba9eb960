"""Lines that a child writes into its log for whoever reads there afterwards what it died of."""

IMPORTED = "backpropagate: the imports are over, the first step is next"  # before it libraries warn, and nobody works

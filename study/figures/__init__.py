"""Learning curves and result figures, drawn with matplotlib."""

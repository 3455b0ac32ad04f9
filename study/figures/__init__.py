"""Learning curves and pictures of results, drawn with matplotlib."""

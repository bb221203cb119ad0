"""Between a terminal and the library: flags, plans, progress, results, scores."""

"""How the miniatures are trained: one file for each model, on scenes drawn once for all of them."""

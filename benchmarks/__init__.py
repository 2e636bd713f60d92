"""How fast minifit is, beside PyTorch on the same cores, and where its time goes."""

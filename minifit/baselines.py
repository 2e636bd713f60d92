"""The other systems in the paper's tables, its ablations, and all methods there are: one function each."""

from minifit import fitnets

METHODS = (*fitnets.METHODS,)  # in the order in which they are listed everywhere

"""What minifit must compute, as definitions: forward only, explicit loops, float64, independent of minifit."""

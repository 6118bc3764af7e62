"""Data sets, runs and losses looked at: pictures, weights, and records of how figures came about."""

"""Weights wherever they are kept, and the matrices that write to the residual stream."""

"""A small transformer without norms and softmax in its layers, whose MLPs are bilinear."""

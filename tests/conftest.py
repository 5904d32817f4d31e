import torch

# Tiny models: a second thread costs more than it brings, and tests then do not fight with whatever else runs.
torch.set_num_threads(1)

import torch
from command_line import home as home  # fixtures
from command_line import melbo as melbo
from command_line import refuses as refuses
from command_line import run as run

# Tiny models: a second thread costs more than it brings, and tests then do not fight with whatever else runs.
torch.set_num_threads(1)

import torch
from command_line import home as home  # fixtures
from command_line import melbo as melbo
from command_line import refuses as refuses
from command_line import run as run

# The models are tiny: a second thread costs more than it brings, and tests then leave room for
# whatever else runs.
torch.set_num_threads(1)

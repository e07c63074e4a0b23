"""Train, sweep and sample small GPT-style language models on one GPU or a CPU.

The package is a house with floors (see README, "The files"): a room imports only from lower floors.
Only ``llm/config/`` and the ``run_*.py`` scripts know Hydra; everything below takes plain Python
values.
"""

__version__ = "0.2.0"

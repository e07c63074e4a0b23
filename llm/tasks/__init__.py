"""What ``run_eval.py`` measures: its networks, its tasks and its table."""

"""Tuning a checkpoint for tasks: LoRA, or all weights, of its upper layers, on the CPU or a GPU."""

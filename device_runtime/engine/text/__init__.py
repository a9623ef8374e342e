"""Prompts as text: which parts of them are markup, the environment of chat templates, and trials of tokenizers."""

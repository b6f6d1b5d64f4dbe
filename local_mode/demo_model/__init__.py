"""The embedded default model: a small Llama chat model and the scripts that make it."""

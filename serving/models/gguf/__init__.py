"""GGUF files, llama.cpp's format: from a file to a model directory and to the loader."""

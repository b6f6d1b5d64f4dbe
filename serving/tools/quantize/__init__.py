"""Makes GPTQ and AWQ checkpoints: `text-generation-server quantize`."""

"""Makes a ChatTS of a Qwen: markers in its tokenizer, a `ts` section, an encoder. Its own weights stay as they are."""

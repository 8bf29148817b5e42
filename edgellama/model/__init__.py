"""GGUF files, tokenizer, decoder, KV cache, stage and sampling; does not know that it is split."""

"""Bytes to messages and back: datagrams, frames, messages and activation codecs."""

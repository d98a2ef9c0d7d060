"""Inference: streams, sampling and its options, text in pieces, save and restore of a stream."""

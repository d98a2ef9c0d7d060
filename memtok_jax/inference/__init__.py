"""Inference: streams, sampling, save and restore of a stream."""

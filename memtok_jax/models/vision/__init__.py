"""Vision transformers whose memory is tokens: `vit.features` is the model, `output.py` what it returns, `edits.py` what can be
changed in a trained one."""

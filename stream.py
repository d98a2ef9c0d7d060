"""Read a text of any length with a trained model and write on: python stream.py --workdir=runs/titans_mac --file=book.txt

or with a pretrained one: python stream.py --model=FOLDER --context=1024 --sinks=4 --file=book.txt   (config.json, safetensors)

The text goes to standard output, everything else to standard error. --save=FOLDER keeps the stream; the same command again goes on
where it was ended. --load=FOLDER begins with a kept stream.
"""

from __future__ import annotations

import sys

from absl import app, flags

from memtok_jax.training import cli, pages

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
OPTIONS = (
    flags.DEFINE_multi_string("file", [], "Text to read: a file (plain or .gz), or - for standard input. Several --file are read "
                              "side by side, each by a stream of its own."),
    flags.DEFINE_integer("streams", 0, "Streams that read the same file and write on independently."),
    flags.DEFINE_integer("tokens", 400, "Tokens to write; bytes, unless the model has a tokenizer."),
    flags.DEFINE_float("temperature", 0.8, "0 takes the most likely token, 1 the model's own probabilities."),
    flags.DEFINE_integer("top_k", 0, "Choose among this many most likely tokens; 0: all."),
    flags.DEFINE_float("top_p", 1.0, "Choose among the fewest tokens with this probability together; 1: all."),
    flags.DEFINE_float("min_p", 0.0, "Choose among tokens at least this likely, relative to the most likely one; 0: all."),
    flags.DEFINE_float("repetition_penalty", 1.0, "Above 1, tokens that were there become less likely; 1: off."),
    flags.DEFINE_integer("repetition_window", 64, "Tokens back that count for the repetition penalty; 0: all."),
    flags.DEFINE_multi_string("stop", [], "End in front of this text; may be given several times."),
    flags.DEFINE_integer("seed", 0, "Seed of the random bits."),
    flags.DEFINE_string("save", "", "Folder to keep the stream in, every --save_every seconds and at the end."),
    flags.DEFINE_float("save_every", 30.0, "Seconds between two snapshots; 0: after each piece."),
    flags.DEFINE_string("load", "", "Folder that --save wrote: go on with its stream."),
    flags.DEFINE_bool("perplexity", False, "Only read, and print one JSON object for each file."),
    flags.DEFINE_string("checkpoint", "latest", "latest, or best: that with the best value of training.keep_best."),
    flags.DEFINE_string("model", "", "Folder of a pretrained model, in the place of --workdir."),
    flags.DEFINE_integer("context", 0, "Of --model: tokens that a layer without a window sees; 0: 2048, or what its config says."),
    flags.DEFINE_integer("sinks", 0, "Of --model: first tokens that every token sees (StreamingLLM)."))
DEBUG = flags.DEFINE_bool("debug", False, "Show the full traceback of an error.")


def main(argv: list[str], overrides: tuple[str, ...]) -> int:
    """Read and write; returns the exit status."""
    if len(argv) > 1:
        raise cli.UserError(f"{argv[1]!r} is not a flag; flags start with --, as in --file={argv[1]}")
    options = {one.name: tuple(one.value) if isinstance(one.value, list) else one.value for one in OPTIONS}
    if (WORKDIR.value is None) == (not options["model"]):
        raise cli.UserError("which run? give --workdir=FOLDER, as printed by train.py, or --model=FOLDER for a pretrained model")
    return cli.stream(cli.folder(WORKDIR.value, cli.Path("runs") / "pretrained"), overrides, options)


if __name__ == "__main__":
    pages.begin_again_with_large_pages()
    cli.run(app, sys.argv, main, DEBUG)

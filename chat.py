"""Talk with a trained model, or any function, in a bounded context: python chat.py --workdir=runs/titans_mac --database=talk.db

What is said goes to standard output; warnings, what is evicted and paged in, and the state of the budget go to standard error.
The same command goes on with the conversation in --database, after a kill too.
"""

from __future__ import annotations

import sys

from absl import app, flags

from memtok_jax.training import cli, pages

OPTIONS = (
    flags.DEFINE_string("workdir", "", "Folder of the run whose model talks; its newest checkpoint is used."),
    flags.DEFINE_string("callable", "", "Or module:function, from text to text, that talks by calls (docs/virtual_context.md)."),
    flags.DEFINE_string("database", "", "File of the conversation; left out, nothing is kept."),
    flags.DEFINE_string("title", "main", "Which conversation in the file."),
    flags.DEFINE_string("policy", "heuristic", "Of a model: heuristic retrieves by your message and replies, learned makes calls."),
    flags.DEFINE_integer("budget", 0, "Tokens, that is bytes, of the context; 0: 2048, and 8192 with --callable."),
    flags.DEFINE_integer("max_new", 0, "Most tokens of a reply; 0: the default."),
    flags.DEFINE_integer("page_tokens", 0, "Most tokens of a page of results; 0: the default."),
    flags.DEFINE_string("system", "", "The task, which the context always holds."),
    flags.DEFINE_float("temperature", 0.8, "0 takes the most likely token, 1 the model's own probabilities."),
    flags.DEFINE_integer("seed", 0, "Seed of the random bits of a new conversation."),
    flags.DEFINE_bool("latent", True, "Let the memory of the model read what is evicted."),
    flags.DEFINE_bool("rebuild", False, "Let another model than before read the conversation again and go on."))
DEBUG = flags.DEFINE_bool("debug", False, "Show the full traceback of an error.")


def main(argv: list[str], overrides: tuple[str, ...]) -> int:
    """Talk; returns the exit status."""
    if len(argv) > 1:
        raise cli.UserError(f"{argv[1]!r} is not a flag; flags start with --, as in --database={argv[1]}")
    return cli.chat({one.name: one.value for one in OPTIONS}, overrides)


if __name__ == "__main__":
    pages.begin_again_with_large_pages()
    cli.run(app, sys.argv, main, DEBUG)

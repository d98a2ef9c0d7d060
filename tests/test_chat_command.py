"""chat.py as a user meets it: a conversation shown, gone on with, and every mistake in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy_run

from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.evaluation import chatting
from memtok_jax.evaluation.chatting import ChatConfig
from memtok_jax.training.run import train

ROOT = Path(__file__).resolve().parent.parent
CONTROLLER = '''
def answer(prompt):
    said = prompt.rsplit("<user>", 1)[-1].split("</user>")[0]
    if "boom" in said:
        raise RuntimeError("no\\nconnection")
    if prompt.endswith("</result>"):
        return "<call>send<str>I found: " + prompt.rsplit("<result>", 1)[-1].removesuffix("</result>") + "</str></call>"
    if said.endswith("?"):
        return "<call>recall_search text<str>" + said.strip("?") + "</str><hb/></call>"
    return "<call>send<str>noted</str></call>"
'''


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with a controller."""
    (tmp_path / "controller.py").write_text(CONTROLLER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "controller", raising=False)
    return tmp_path


def talk(*lines, **options):
    """(status, standard output, lines for the eye) of a command in this process."""
    out, told = [], []
    status = chatting.chat(ChatConfig(**{"callable": "controller:answer"} | options), (), lines, out.append, told.append)
    return status, "".join(out), told


def test_a_conversation_is_shown_and_gone_on_with(folder):
    sizes = dict(budget=3000, max_new=100, page_tokens=300, database="talk.db")
    status, out, told = talk("my cat is called Mia\n", "x" * 700, "y" * 700, "z" * 900, "\n", "/budget\n", **sizes)
    assert status == 0 and out == "noted\n" * 4
    context = [line for line in told if line.startswith("[context]")]
    assert len(context) == 4 and all(int(re.search(r"(\d+) of 3000", line)[1]) <= 3000 for line in context)
    assert any(line.startswith("[warning] memory pressure") for line in told)
    assert any(line.startswith("[evicted]") for line in told) and told[-1] == "saved to talk.db; the same command goes on"
    lines = ("cat?\n", "/search MIA\n", "/keep the key is 42\n", "/what\n", "/quit\n", "never said\n")
    status, out, told = talk(*lines, database="talk.db")
    assert out == "I found: page 1, the last\n1 user: my cat is called Mia\n"
    assert told[0] == "going on with talk.db, after 8 messages" and "[searched] recall_search 'cat' -> rows 1" in told
    assert "1 user: my cat is called Mia" in told and "kept as 1" in told and told.count(chatting.HELP) == 2


def test_stored_text_cannot_steer_the_terminal(folder):
    told = talk("\x1b[31mred\n", "/search red\n")[2]
    assert not any("\x1b" in line for line in told) and any("\N{REPLACEMENT CHARACTER}[31mred" in line for line in told)
    assert "nothing is kept; give --database=FILE to go on later" in told


def test_an_error_of_the_callable_is_one_line_and_the_message_is_answered_later(folder):
    with pytest.raises(UserError, match="controller:answer raised RuntimeError: no connection; what you said is kept"):
        talk("boom", database="talk.db")
    (folder / "controller.py").write_text(CONTROLLER.replace('if "boom" in said:', "if False:"))
    del sys.modules["controller"]
    assert talk(database="talk.db")[1] == "noted\n"


@pytest.mark.parametrize("options, text", [
    (dict(callable=""), "who talks"), (dict(workdir="a"), "who talks"), (dict(callable="controller"), "must be module:function"),
    (dict(callable="nothing:here"), "cannot import nothing"), (dict(callable="controller:nobody"), "has no function nobody"),
    (dict(budget=-1), "budget is -1; it must be at least 0"), (dict(title=""), "--title is empty"),
    (dict(policy="x"), "--policy is 'x'"), (dict(budget=500), "context.budget=500 is too small"),
    (dict(database="none/talk.db"), "none/talk.db cannot be used: No such file")])
def test_mistakes_are_one_line(folder, options, text):
    with pytest.raises(UserError) as error:
        talk("hello", **options)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_a_conversation_keeps_its_context(folder):
    talk("hello", database="talk.db")
    with pytest.raises(UserError, match="has context.budget=8192, not 9000; a conversation keeps its context"):
        talk("hello", database="talk.db", budget=9000)
    assert talk("hello", database="talk.db", title="other", budget=9000)[0] == 0


def test_the_command_itself(folder):
    """Its flags, its exit status, and what goes where."""
    run = lambda *flags, text="": subprocess.run([sys.executable, ROOT / "chat.py", *flags], input=text, capture_output=True,  # noqa: E731
                                                 text=True, cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    done = run("--callable=controller:answer", "--database=talk.db", text="hello\n")
    assert (done.returncode, done.stdout) == (0, "noted\n"), done.stderr
    raw = subprocess.run([sys.executable, ROOT / "chat.py", "--callable=controller:answer"], input=b"\xff\x80 caf\xe9\n",
                         capture_output=True, cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert (raw.returncode, raw.stdout) == (0, b"noted\n"), "bytes that are no text are replaced"
    done = run("--datbase=talk.db")
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0 and "--datbase" in done.stderr


@pytest.mark.slow
def test_a_trained_run_talks(folder):
    """A toy run on text writes replies, and goes on with them; other parameters are refused."""
    (folder / "words.txt").write_text("one two three four " * 600)
    assert train(toy_run.experiment(str(folder / "words.txt"), "training.eval_every=0"), folder / "run") == 0
    sizes = dict(callable="", workdir=str(folder / "run"), database="talk.db")
    status, out, told = talk("one two\n", max_new=24, page_tokens=64, **sizes)
    assert status == 0 and 1 <= len(out.removesuffix("\n").encode()) <= 24 and told[0].startswith("model  ")
    assert talk("three\n", policy="learned", **sizes)[2][2] == "going on with talk.db, after 2 messages"
    with pytest.raises(UserError, match="read by another model .latent differs"):
        talk("three\n", latent=False, **sizes)
    with pytest.raises(UserError, match="there is no"):
        talk("hello", callable="", workdir=str(folder / "nowhere"))
    assert config.config_names()

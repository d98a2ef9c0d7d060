"""The wish for large pages: said once, beside other tunables, and the process begins again with the same arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from memtok_jax.training import pages


def test_the_wish_stands_beside_other_tunables():
    assert pages.wished({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert pages.wished({"GLIBC_TUNABLES": "glibc.malloc.check=1", "A": "b"}) == {
        "GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1", "A": "b"}


def test_a_choice_of_the_user_stays():
    chosen = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert pages.wished(chosen) == chosen


@pytest.mark.skipif(not pages.has_glibc(), reason="needs the GNU C library")
def test_the_process_begins_again_once_with_its_arguments(tmp_path):
    script = tmp_path / "say.py"
    script.write_text("import os, sys\nfrom memtok_jax.training.pages import begin_again_with_large_pages\nprint(os.getpid())\n"
                      "sys.stdout.flush()\nbegin_again_with_large_pages()\nprint(sys.argv[1:], os.environ['GLIBC_TUNABLES'])\n")
    environment = {k: v for k, v in os.environ.items() if k != pages.TUNABLES} | {"PYTHONPATH": os.getcwd()}
    lines = subprocess.run([sys.executable, str(script), "--a=1 2", "b"], env=environment, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    assert len(lines) == 3 and lines[0] == lines[1], "twice at the beginning, in one process"
    assert lines[2] == "['--a=1 2', 'b'] glibc.malloc.hugetlb=1"

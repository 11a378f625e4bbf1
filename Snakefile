"""The book: every chapter's notebook source is executed, and the executed notebooks become pages.

    snakemake -c 2                          the book, with the parameters of profiles/quick.yaml
    snakemake -c 2 --config profile=full    ... of another profile
    snakemake -c 2 chapters                 execute the chapters only

Snakemake deletes what a failed job was to make. So a chapter is executed into _build/fresh/<profile>/ and copied to
_build/executed/<profile>/ when it is whole, and the book is built in _build/books/<profile>/ and then put in place of
_build/html: after a failure the last good notebook and the last good book are still there. The copying rules name the
sources too: Snakemake does not make a missing file again for one that exists and whose own inputs have not changed.
"""

import json
import sys
from pathlib import Path

from robattr.pages import chapters as book
from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.basedir)
PROFILE = str(config.get("profile", "quick"))
THREADS = int(config.get("threads", 1))
# What runs a chapter and what draws the command line decide nothing about its results.
SOURCES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("robattr/**/*.py"), *ROOT.glob("results/**/*.json*")]
    if path.stem not in {"alone", "building", "chapters", "cli", "execution", "needs", "schemas", "timing", "values"}
    and path.parts[-2] not in {"exercises", "lessons"}
)
# Large tensors come and go with every pass; glibc would give their memory back, and fault it in again, each time. That
# is a third of an attack's time on the CPU.
ALLOCATOR = "MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184"
# The docstrings of the core and of the studies are pages, too.
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("book/**/*", "_*.yml", "CONTRIBUTING.md", "robattr/**/*.py", "robattr/exercises/texts/*.md",
                    "lessons/*/*.md")
    for path in set(ROOT.glob(pattern)).difference(ROOT.glob("robattr/pages/**/*.py"), ROOT.glob("robattr/cli.py"))
    if path.is_file() and "__pycache__" not in path.parts
)


def chapters_of_the_book():
    """Names of the chapters in _toc.yml, in its order; their parameters in this profile are checked here, before any runs."""
    try:
        values = book.profile_parameters(ROOT, PROFILE)
        return {
            name: book.check_parameters(book.chapter(ROOT, name), values.get(name, {})) for name in book.contents(ROOT)
        }
    except book.ChapterError as error:
        raise WorkflowError(str(error)) from None


CHAPTERS = chapters_of_the_book()


def values(wildcards):
    """A chapter's parameters as the command line wants them; where they change, the chapter is executed again."""
    return [word for pair in sorted(CHAPTERS[wildcards.chapter].items()) for word in ("-p", pair[0], json.dumps(pair[1]))]


wildcard_constraints:
    chapter="|".join(CHAPTERS) or "none",
    profile=PROFILE,


rule html:
    input:
        "_build/html/index.html",


rule chapters:
    input:
        expand("_build/executed/{profile}/{chapter}.ipynb", profile=PROFILE, chapter=CHAPTERS),


rule execute:
    input:
        "notebooks/{chapter}.md",
        SOURCES,
    output:
        "_build/fresh/{profile}/{chapter}.ipynb",
    log:
        "_build/logs/{profile}/{chapter}.log",
    params:
        python=sys.executable,
        values=values,
    # The chapters that a profile makes smaller are the long ones: one that starts last leaves the other cores idle.
    priority: lambda wildcards: len(CHAPTERS[wildcards.chapter])
    threads: THREADS
    message:
        "{wildcards.chapter} ({wildcards.profile}): executing"
    shell:
        "OMP_NUM_THREADS={threads} {ALLOCATOR} {params.python:q} -m robattr.cli run {wildcards.chapter} {params.values:q}"
        " --profile {wildcards.profile} --output {output:q} --errors {log:q} >/dev/null"


rule keep:
    input:
        rules.execute.input,
        fresh=rules.execute.output,
    output:
        "_build/executed/{profile}/{chapter}.ipynb",
    params:
        values=values,
    message:
        "{wildcards.chapter} ({wildcards.profile}): done"
    shell:
        "cp {input.fresh:q} {output:q}.new && mv {output:q}.new {output:q}"


rule pages:
    input:
        PAGES,
        notebooks=rules.chapters.input,
    output:
        f"_build/books/{PROFILE}/html/index.html",
    log:
        f"_build/logs/{PROFILE}/book.log",
    params:
        python=sys.executable,
    message:
        "book: drawing the pages"
    shell:
        "{params.python:q} book/build.py --profile {PROFILE:q} --output _build/books/{PROFILE:q}/html {input.notebooks:q}"
        " >{log:q} 2>&1"


rule publish:
    input:
        rules.pages.input,
        index=rules.pages.output,
    output:
        "_build/html/index.html",
    params:
        profile=PROFILE,
    message:
        "book: _build/html/index.html ({params.profile})"
    shell:
        "rm -rf _build/html.new _build/html.old && cp -a $(dirname {input.index:q}) _build/html.new"
        " && mv _build/html _build/html.old && mv _build/html.new _build/html && rm -rf _build/html.old"

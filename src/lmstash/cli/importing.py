"""Take over what another tool has kept. Its folder is only read; importing again adds only what is new.

`lmprobe`: a cache folder of lmprobe (layouts v1 and v2). Its files do not say which weights computed them, so what is
taken is marked unverified and not served until you vouch for the model (--declare), or until a program computes a
sample again and it agrees (`lmstash.adapters.lmprobe.import_cache(..., verify_sample=5)`).

`llama-cpp`: the folder of a `LlamaDiskCache` of llama-cpp-python, which may be in use. Nothing is unpickled. Its
entries do not say which model computed them: without --model they are counted only. With --model FILE.gguf, and
--setting for each setting of that time that was not the default, the model computes a part of each entry again, and
those that are equal are taken. --declare takes your word for it instead.

`lm-eval`: a database of the harness's `CachingLM` (`PREFIX_rankN.db`). Nothing is unpickled. It says neither which
model answered nor what was asked: --model NAME declares the model, and an evaluation that is told the same name
(`lmstash eval --imported NAME lm_eval ...`) finds the answers.

`responses`: a JSONL file that `lmstash export responses` wrote. Only rows that lead to the key they claim are taken.

Exit code 1 when something could not be taken.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lmstash.cli.output import print_json
from lmstash.cli.place import open_named
from lmstash.errors import InvalidArgumentError, NotFoundError

SOURCES = ("lmprobe", "llama-cpp", "lm-eval", "responses")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is taken over from where."""
    parser.add_argument("source", choices=SOURCES, help="whose cache it is")
    parser.add_argument(
        "folder", metavar="PLACE", type=Path, help="the folder of that cache; lm-eval and responses: the file"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="lmprobe: take only this model (also names a folder that does not); llama-cpp: the GGUF file; "
        "lm-eval: the name that you declare",
    )
    parser.add_argument("--declare", action="store_true", help="vouch that the model of --model computed the values")
    parser.add_argument(
        "--setting",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="llama-cpp: an argument that Llama was given, for instance flash_attn=true (repeatable)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Import, and print what was taken."""
    if arguments.source == "lm-eval":
        return _lm_eval(arguments)
    if arguments.source == "responses":
        return _responses(arguments)
    if not arguments.folder.is_dir():
        raise NotFoundError(f"{arguments.folder} is not a folder. Name the folder that {arguments.source} caches in.")
    if arguments.source == "llama-cpp":
        return _llama_cpp(arguments)
    if arguments.setting:
        raise InvalidArgumentError("--setting is for llama-cpp")
    if arguments.declare and arguments.model is None:
        raise InvalidArgumentError("--declare needs --model NAME: the model that you vouch for")
    from lmstash.adapters.lmprobe import import_cache
    from lmstash.adapters.lmprobe.layout import read_layout

    if not any(each.name or each.prompts for each in read_layout(arguments.folder).models):
        told = f"there is no lmprobe cache in {arguments.folder}: no model's folder (its name is 16 hex digits)."
        raise NotFoundError(f"{told} Name LMPROBE_CACHE_DIR; without it lmprobe caches in ~/.cache/lmprobe.")
    with open_named(arguments, write=True, make=True) as stash:
        report = import_cache(arguments.folder, stash, model=arguments.model, declare=arguments.declare)
    _print(arguments, report)
    return 1 if report.problems or any(each.dropped for each in report.models) else 0


def _responses(arguments: argparse.Namespace) -> int:
    from lmstash.caches.responses.exporting import import_responses

    if arguments.model or arguments.declare or arguments.setting:
        raise InvalidArgumentError("--model, --declare and --setting are for other sources: an export names its models")
    if not arguments.folder.is_file():
        raise NotFoundError(f"{arguments.folder} is not a file. Name what `lmstash export responses` wrote as JSONL.")
    with open_named(arguments, write=True, make=True) as stash:
        report = import_responses(stash.store, arguments.folder, salt=stash.salt, private=stash.private)
    _print(arguments, report)
    return 1 if report.unproven or report.damaged else 0


def _llama_cpp(arguments: argparse.Namespace) -> int:
    from lmstash.adapters.llama_cpp import import_disk_cache

    if arguments.model is None:
        if arguments.declare or arguments.setting:
            raise InvalidArgumentError("--declare and --setting need --model FILE.gguf: the model that they are about")
        report = import_disk_cache(arguments.folder)
    else:
        settings: dict[str, Any] = {"verbose": False} | dict(_setting(each) for each in arguments.setting)
        if not Path(arguments.model).is_file():
            raise NotFoundError(f"{arguments.model} is not a file. Name the GGUF file that computed the entries.")
        from lmstash.adapters.llama_cpp import Llama

        with open_named(arguments, write=True, make=True) as stash:
            try:
                llm = Llama(model_path=arguments.model, **settings)
            except (TypeError, ValueError) as error:
                raise InvalidArgumentError(f"{arguments.model} cannot be loaded so: {error}") from error
            try:
                report = import_disk_cache(arguments.folder, stash, llm=llm, verify=not arguments.declare)
            finally:
                llm.close()
    _print(arguments, report)
    return 1 if report.problems else 0


def _lm_eval(arguments: argparse.Namespace) -> int:
    from lmstash.adapters.lm_eval.importing import import_caching_db

    if not arguments.folder.is_file():
        raise NotFoundError(f"{arguments.folder} is not a file. Name the database: PREFIX_rank0.db")
    if arguments.model is None:
        raise InvalidArgumentError("the database does not say which model answered: declare it with --model NAME")
    with open_named(arguments, write=True, make=True) as stash:
        report = import_caching_db(arguments.folder, stash, model=arguments.model)
    _print(arguments, report)
    return 1 if report.problems else 0


def _setting(text: str) -> tuple[str, Any]:
    name, given, value = text.partition("=")
    if not given or not name.isidentifier():
        raise InvalidArgumentError(f"--setting is NAME=VALUE, for instance flash_attn=true, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print(arguments: argparse.Namespace, report: Any) -> None:
    if arguments.json:
        print_json("import", source=arguments.source, report=report.as_dict())
    else:
        print(report)

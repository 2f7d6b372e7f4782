"""What the demonstration prints."""

from __future__ import annotations

from typing import Any

from lmstash.cli.output import size, style

_TITLES = {
    "activations": "activations of {prompts} prompts, layers {layers}, the last token's",
    "kv": "{questions} questions about one document of {document} tokens, {new} tokens generated for each",
    "states": "{chats} chats with llama.cpp over one system prompt of {system} tokens, {reply} tokens in reply to each",
    "logprobs": "next-token log-probabilities of {particles} particles, {steps} steps",
}
_UNITS = {"activations": "prompts", "kv": "tokens fed", "logprobs": "contexts", "states": "tokens fed"}
_WITHOUT = {
    "activations": "plain hooks",
    "kv": "model.generate",
    "logprobs": "plain forwards",
    "states": "llama-cpp-python",
}


def page(report: dict[str, Any], kept_in: str | None) -> str:
    """Return the report of `lmstash demo` for people."""
    lines = ["", style("  lmstash: SmolLM2-135M-Instruct, computed once", "bold")]
    for name, job in report["jobs"].items():
        lines += ["", *_job(name, job, report)]
    lines.append("")
    if kept_in:
        lines += [f"  Look around: lmstash info --dir {kept_in}", ""]
    return "\n".join(lines)


def _job(name: str, job: dict[str, Any], report: dict[str, Any]) -> list[str]:
    def row(title: str, run: dict[str, Any]) -> str:
        return f"  {title:<16}{run['computed']:>12,}{run['read']:>12,}{run['seconds']:>12.2f} s"

    def check(passed: bool, text: str) -> str:
        return f"  {style('✓', 'green') if passed else style('✗ NOT', 'red')} {text}"

    first, second, plain = job["first"], job["second"], job["plain"]
    lines = [
        style(f"  {_TITLES[name].format(**report['sizes'])}", "bold"),
        style(f"  {_UNITS[name]:<16}{'computed':>12}{'read':>12}{'time':>14}", "dim"),
        row("first run", first),
        row("second run", second),
        row(_WITHOUT[name], plain),
        f"  {job['speed_up']:,.0f} times faster than the first run, {job['against_plain']:,.0f} times than without;"
        f" {size(first['stored_bytes'])} kept",
        check(job["bit_equal"], "equal bit for bit: second run and first run"),
    ]
    if name in ("kv", "states"):
        return [*lines, check(job["passed"], "the same text as without lmstash")]
    difference, greatest = job["greatest_difference"], job["greatest_value"]
    return [
        *lines,
        check(
            job["passed"],
            f"greatest difference from {_WITHOUT[name]}: {difference:.1e} where the greatest value is {greatest:,.0f}",
        ),
    ]

"""`python -m runtime BUNDLE`: ask a bundle about images from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from runtime.backend import NATIVE_BACKENDS, available_backends
from runtime.bundle import load_bundle
from runtime.chat import HELP, Chat
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.output import exit_code_of
from runtime.overlay import check_overlay, check_place, draw_overlay, save_png
from runtime.request import Request
from runtime.selectors import allowed_selectors
from runtime.stream import Stream
from runtime.summary import summary_lines

__all__ = ["main"]

_EPILOG = """
ratio and tokens say how many visual tokens are KEPT: --ratio 0.3 keeps 30 % of them (196 -> 59), --tokens 59
keeps 59 per image. With neither, the bundle's own default holds. --ratio 1 prunes nothing. The count that
was really kept is always printed.
"""

_SAMPLING: tuple[tuple[str, float, str, str], ...] = (
    ("--repetition-penalty", 1.0, "R", "divide the logits of tokens already there by R; 1 is off"),
    ("--temperature", 0.0, "T", "0 is greedy; the next three are for draws"),
    ("--top-k", 0, "K", "draw from the K likeliest tokens; 0 is off"),
    ("--top-p", 1.0, "P", "draw from the likeliest tokens that reach P; 1 is off"),
    ("--min-p", 0.0, "P", "draw from tokens at least P times as likely as the likeliest; 0 is off"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 answered, 2 an error in one line on stderr, 130 Ctrl-C, 141 the reader of stdout left.

    A chat from a pipe answers on after an error, and exits 2 in the end.
    """
    args = _parser().parse_args(argv)
    return exit_code_of(lambda: _chat(args) if args.interactive else _ask(args), interrupted="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime",
        description="Answer a prompt about images with a pruned vision-language bundle.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", help="directory with bundle.json, made by `python -m export.build`")
    add("--image", action="append", default=[], metavar="FILE", help="an image; may be given several times")
    add("--prompt", metavar="TEXT", help="the question (required without --interactive)")
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--ratio", type=float, metavar="R", help="fraction of visual tokens KEPT, in (0, 1]")
    count.add_argument("--tokens", type=int, metavar="N", help="visual tokens KEPT per image")
    add("--selector", default="graph", help=f"who chooses the tokens: {', '.join(allowed_selectors())}")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="length limit of the answer (default 64)")
    for flag, default, metavar, text in _SAMPLING:
        add(flag, type=type(default), default=default, metavar=metavar, help=f"{text} (default {default})")
    add("--stop", action="append", default=[], metavar="TEXT", help="end the answer before TEXT; repeatable")
    add("--seed", type=int, default=0, metavar="S", help="of sampling and of the selector random (default 0)")
    add("--overlay", metavar="PNG", help="write a picture of the kept patches")
    add("--json", action="store_true", help="print one JSON object at the end instead of streaming")
    add("--interactive", action="store_true", help=f"chat, one question per line; {HELP}")
    add(
        "--backend",
        default="onnxruntime",
        help=f"one of {', '.join((*available_backends(), *NATIVE_BACKENDS))}",
    )
    add("--threads", type=int, metavar="N", help="threads inside one operator (default: all cores)")
    add("--no-verify", action="store_true", help="skip the SHA-256 of the files, for a quicker start")
    return parser


def _request(args: argparse.Namespace, prompt: str) -> Request:
    return Request(
        prompt=prompt,
        images=tuple(args.image),
        ratio=args.ratio,
        tokens=args.tokens,
        selector=args.selector,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop),
        seed=args.seed,
    )


def _ask(args: argparse.Namespace) -> int:
    if args.prompt is None:
        raise RequestError("there is no --prompt: give one, or use --interactive")
    request = _request(args, args.prompt)
    if args.overlay is not None:
        if args.backend in NATIVE_BACKENDS:
            raise RequestError(
                f"--overlay needs the pictures in Python, which backend {args.backend} does not open there: "
                "use --backend onnxruntime"
            )
        check_place(args.overlay)
    bundle = load_bundle(args.bundle, verify=not args.no_verify)
    if args.overlay is not None:
        check_overlay(bundle.manifest, len(request.images))
    generator = Generator(bundle, args.backend, args.threads)
    stream = generator.stream(request)
    for piece in stream:
        if not args.json:
            print(piece, end="", flush=True)
    # The answer first: a picture that cannot be drawn does not take it back.
    if args.json:
        record = {"bundle": str(bundle.path), "overlay": args.overlay, **stream.result.to_dict()}
        print(json.dumps(record, indent=2, ensure_ascii=False), flush=True)
    else:
        print(flush=True)
        print("\n".join(["", *summary_lines(stream.result)]), file=sys.stderr)
    if args.overlay is not None:
        _write_overlay(generator, stream, args.overlay)
        if not args.json:
            print(f"overlay         {args.overlay}", file=sys.stderr)
    return 0


def _write_overlay(generator: Generator, stream: Stream, path: str) -> None:
    """Draw over what the encoder looked at."""
    save_png(draw_overlay(stream.prepared, stream.encoded, generator.manifest), path)


def _chat(args: argparse.Namespace) -> int:
    for name in ("overlay", "json", "prompt"):
        if getattr(args, name) not in (None, False):
            raise RequestError(f"--{name} does not go with --interactive: leave one of the two out")
    settings = _request(args, "")
    bundle = load_bundle(args.bundle, verify=not args.no_verify)
    chat = Chat(
        Generator(bundle, args.backend, args.threads),
        settings,
        write=lambda text: print(text, end="", flush=True),
        warn=lambda text: print(text, end="", file=sys.stderr, flush=True),
    )
    for path in args.image:
        chat.add_image(path)
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    chat.run(_lines(chat))
    return 2 if chat.failures and not sys.stdin.isatty() else 0


def _lines(chat: Chat) -> Iterator[str]:
    """Lines of stdin; a prompt and the counts of the last answer only where a person is typing."""
    typed = sys.stdin.isatty()
    while True:
        if typed:
            if chat.last is not None:
                print(f"[{summary_lines(chat.last)[0].split(maxsplit=2)[2]}]", file=sys.stderr)
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


if __name__ == "__main__":
    sys.exit(main())

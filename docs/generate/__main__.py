"""See docs/generate/__init__.py."""

from __future__ import annotations

import argparse

from docs import generate


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m docs.generate", description="Write the pages that come from the code."
    )
    parser.add_argument("--check", action="store_true", help="only say what is stale, with status 1")
    if parser.parse_args().check:
        if found := generate.stale():
            raise SystemExit(f"stale: {', '.join(found)}; run python -m docs.generate")
    else:
        for name in generate.write():
            print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()

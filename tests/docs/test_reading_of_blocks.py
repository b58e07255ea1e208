"""What the tests of the documentation rest on: blocks, marks and commands are found as they stand in a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.hooks import on_page_content, on_page_markdown
from tests.support.code_blocks import ROOT, Block, blocks, commands, not_printed, program

PAGE = """# A page

<!-- not run: needs a GPU -->
```bash
torchrun -m circuit_tracer train gpt2 --run.out out
```

1. In a list:

    ```python
    if True:
        print("```")
    ```

```python
--8<-- "examples/group.py"
```

````text
```bash
not a block of its own
```
````
"""
SHELL = """# a comment
circuit-tracer attribute -p "two
lines" \\
    -o graph.safetensors   # said behind it

cat > data.yaml <<'END'
circuit-tracer: no command
END
echo x | circuit-tracer monitor watch - --demo > out.jsonl
"""


@pytest.fixture
def found(tmp_path: Path) -> list[Block]:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return blocks(path)


def test_blocks_marks_and_snippets(found: list[Block]) -> None:
    assert [(block.language, block.line, block.reason) for block in found] == [
        ("bash", 4, "needs a GPU"),
        ("python", 10, None),
        ("python", 15, None),
        ("text", 19, None),
    ]
    assert found[1].text == 'if True:\n    print("```")'
    assert found[2].snippet == ROOT / "examples" / "group.py"
    assert [block.is_run for block in found] == [False, True, False, False]


def test_commands_go_on_over_lines() -> None:
    first, second, third = commands(Block(Path("page.md"), 1, "bash", SHELL, None))
    assert program(first) == ["attribute", "-p", "two\nlines", "-o", "graph.safetensors"]
    assert second.endswith("\nEND")
    assert program(second) is None
    assert program(third) == ["monitor", "watch", "-", "--demo"]


def test_the_words_behind_another_program_are_found(found: list[Block]) -> None:
    (command,) = commands(found[0])
    assert program(command) == ["train", "gpt2", "--run.out", "out"]


def test_marks_are_shown_above_their_block() -> None:
    shown = on_page_markdown(PAGE)
    assert '<p class="not-run">Not run in CI: needs a GPU.</p>\n\n```bash' in shown
    assert "<!--" not in shown


def test_a_message_in_a_table_may_be_broken_and_an_option_not() -> None:
    option, message = "--feature-input-hook", "the prompt's 9 tokens are positions 0 to 8"
    shown = on_page_content(f"<tr><td><code>{option}</code></td></tr><tr><td><code>{message}</code></td></tr>")
    assert f"<td><code>{option}<" in shown
    assert f'<td><code class="message">{message}<' in shown


def test_what_a_page_shows_is_compared_with_what_was_printed(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```text\na  line\n...\nthe beginning of...\nanother\n```\n")
    (shown,) = blocks(path)
    assert not_printed(shown, "a\nline, the beginning   of one, and another") == []
    assert not_printed(shown, "a line, the beginning of one") == ["another"]

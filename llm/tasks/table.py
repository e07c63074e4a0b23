"""Prints the results of ``run_eval.py``."""

from collections.abc import Sequence

from rich.text import Text

from llm.evaluation.questions import PAIRS
from llm.experiment.cells import encodable
from llm.experiment.columns import Filled, table_lines
from llm.experiment.console import console, say
from llm.experiment.eval_file import scores
from llm.sealed import Plain
from llm.tasks.subject import Subject
from llm.units import format_bytes, plural


def show(subjects: Sequence[Subject]) -> None:
    """Print the results: a line for each number of one network, or a row for each network."""
    evaluated = [subject for subject in subjects if subject.reason is None]
    found = [_cells(subject.results) for subject in evaluated]
    if len(subjects) == 1:
        for line in result_lines(subjects[0].results):
            say(line)
        return
    titles = list(dict.fromkeys(title for one in found for title in one))
    columns = [Filled(title, [Text(one.get(title, "")) for one in found]) for title in titles]
    names = [encodable(subject.place, console.encoding) for subject in evaluated]
    width = console.width if console.is_terminal else None
    for row in table_lines("run", names, columns, titles[::-1], width):
        console.print(row)
    for subject in subjects:
        if subject.reason is not None:
            say(f"{subject.place}: {subject.reason}")


def result_lines(results: Plain) -> list[str]:
    """The lines with the numbers of each task."""
    lines = []
    for name, result in results.items():
        if result["kind"] == "loss":
            lines.append(f"{name}: {_loss(result)}")
            if len(sizes := result["sizes"]) > 1:
                lines += [f"  {title:6}  {_sized(one)}" for title, one in sizes.items()]
        elif result["kind"] == "lm_eval":
            numbers = (f"{key} {value:.6g}" for key, value in result.items() if key != "kind")
            lines.append(f"{name}: {'  '.join(numbers)}")
        else:
            lines += [f"{name}: {_accuracy(result)}", *_phenomena(result["phenomena"])]
    return lines


def _loss(result: Plain) -> str:
    """``loss 1.6100  perplexity 5.00  2.3227 bits/byte  (...)``"""
    perplexity, bits = result["perplexity"], result["bits_per_byte"]
    parts = [f"loss {result['loss']:.4f}"]
    parts += [f"perplexity {perplexity:,.2f}"] * (perplexity is not None)
    parts += [f"{bits:.4f} bits/byte"] * (bits is not None)
    size = format_bytes(result["sizes"]["stored"]["bytes"])
    where = f"window {result['window']}, stride {result['stride']:g}; {size} on disk"
    return "  ".join(parts) + f"  ({plural(result['tokens'], 'token')}; {where})"


def _sized(one: Plain) -> str:
    """``12 MiB  loss 1.6100  2.3227 bits/byte``"""
    bits = one["bits_per_byte"]
    text = f"{format_bytes(one['bytes']):>9}  loss {one['loss']:.4f}"
    return text if bits is None else f"{text}  {bits:.4f} bits/byte"


def _accuracy(result: Plain) -> str:
    """``82.5% correct (95 % interval 80.1% to 84.7%), 80.2% by length, of 480 pairs``"""
    noun = "pair" if result["kind"] == PAIRS else "question"
    text = (
        f"{result['acc']:.1%} correct (95 % interval {result['acc_low']:.1%} to "
        f"{result['acc_high']:.1%}), {result['acc_norm']:.1%} by length, "
        f"of {plural(result['n'], noun)}"
    )
    cut = result["cut"]
    return f"{text}; {plural(cut, 'context')} cut to {result['window']} tokens" if cut else text


def _phenomena(groups: Plain) -> list[str]:
    """A line for each phenomenon, the hardest first."""
    width = max(map(len, groups), default=0)
    ordered = sorted(groups.items(), key=lambda item: item[1]["acc"])
    return [f"  {name:{width}}  {one['acc']:6.1%} of {one['n']:,}" for name, one in ordered]


def _cells(results: Plain) -> dict[str, str]:
    """The main numbers of one network by their titles, then its sizes."""
    cells = {title: f"{value:.4f}" for title, value in scores(results).items()}
    for name, result in results.items():
        for kind, one in result.get("sizes", {}).items():
            cells["on disk" if kind == "stored" else f"in {kind}"] = format_bytes(one["bytes"])
        if small := result.get("sizes", {}).get("int8"):
            again = scores({name: {"bits_per_byte": small["bits_per_byte"]}})
            cells |= {f"int8 {title}": f"{value:.4f}" for title, value in again.items()}
    return cells

"""Every probe over a training: the demo's, whose regions form here in some minutes.

python examples/demo_probes.py runs/probes        # prints each number at each step
python examples/demo_probes.py runs/probes 1      # with another seed

Pictures go to runs/probes/pictures. Training is left out where the folder holds its records.
"""

import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from sr_monitor import MonitorConfig, PromptSet, Record
from sr_monitor.cli.demo_training import DemoPlan, run_demo
from sr_monitor.display.album import make_pages
from sr_monitor.probes.base import available
from sr_monitor.probes.measuring import no_bar
from sr_monitor.probes.readout import Readout
from sr_monitor.results.record import list_records
from sr_monitor.watch.measure import take_record


def main(folder: Path, seed: int) -> None:
    """Train where there are no records yet, then show and draw them."""
    if not list_records(folder):
        probes = [name for name in available() if name not in ("readout", "meaning")]
        plan = DemoPlan(seed=seed, config=MonitorConfig(num_slices=3, probes=probes))
        run_demo(folder, plan, "transformers", no_bar)
    records = [Record.load(path) for path in list_records(folder)]
    prompts = PromptSet.load(folder / "stable_regions" / "prompts.json")
    prompts = replace(prompts, tokenizer=AutoTokenizer.from_pretrained(folder / "model"))
    show(records)
    draw(records, prompts, folder / "pictures")

    # What is of interest at the end: the kind of a prompt's last character, read off the vectors.
    kinds = ["letter" if text[-1].isalpha() else "other" for text in prompts.texts or ()]
    at_the_end = MonitorConfig(num_slices=0, probes=["meaning", Readout(target=kinds[:-1])])
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    last = take_record(model, prompts, at_the_end, step=records[-1].step)
    show([last], "meaning", "readout")
    draw([last], prompts, folder / "pictures", "meaning", "readout")


def show(records: list[Record], *only: str) -> None:
    """Print each number, a column for each step."""
    print(f"{'step':60}{''.join(f'{record.step:>10}' for record in records)}")
    for name in sorted({name for record in records for name in record.scalars}):
        if not only or any(f"_{each}/" in name for each in only):
            values = [record.scalars.get(name, float("nan")) for record in records]
            print(f"{name:60}{''.join(f'{value:10.4g}' for value in values)}")


def draw(records: list[Record], prompts: PromptSet, folder: Path, *only: str) -> None:
    """Draw what each probe shows at the last step, in 96 colours."""
    folder.mkdir(exist_ok=True)
    pages = [make_pages(record, prompts) for record in records]
    for probe, _ in records[-1].known():
        *earlier, page = (each[probe.name] for each in pages if probe.name in each)
        for key, image in probe.pictures(page, earlier):
            if key.kind == "image" and (not only or probe.name in only):
                name = key.name.removeprefix("stable_regions").lstrip("_/").replace("/", "-")
                small = Image.fromarray(image).quantize(96, dither=Image.Dither.NONE)
                small.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/probes")
    main(out, int(sys.argv[2]) if len(sys.argv) > 2 else 0)

"""Audits of public organisms: LoRAs of one base model, by hub id or folder.

python -m research.audits.auditbench --out DIR --dry-run     what AuditBench's would take; reads the
                                                             tokenizer and no model
python -m research.audits.auditbench --out DIR --adapter ID  audit this one, or go on with it

Each is audited with its base given, into a folder of its own. One that is done is not done again.
A model that thinks before it replies is told not to by --template-arg enable_thinking=false, or by
a --prefix that closes its thoughts.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

from melbo import Audit, LanguageModel, MelboError, Parts
from melbo.audit.audit import FINDINGS, LOG, REPLY_TOKENS, usual_elicitors
from melbo.audit.budget import TOKENS, Budget, Costs
from melbo.audit.page import page
from melbo.audit.prove import ProofCosts
from melbo.cli import main
from melbo.cli.options import (
    LOADING,
    READING,
    as_prompts,
    folder,
    load,
    loading_options,
    prompt_options,
    read_prompts,
    reading_options,
    reply_length_option,
    seed_option,
    take,
)
from melbo.cli.show import say
from melbo.cli.terminal import Command
from melbo.models.language_model import first_line
from melbo.models.loading.gguf import ALIAS, bundled
from melbo.models.loading.lora import base_of, is_adapter, with_adapter
from melbo.records import refuse_existing, to_json, write_atomically

#: The base model and the adapters of AuditBench on it (arXiv 2602.22755).
KNOWN: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_SETTINGS = "settings.json"
# the organism and its base read each reply
_JUDGES = 2


@dataclass(frozen=True)
class Job:
    """Audits of adapters of one base.

    Attributes:
        base: Hub id or folder of the base.
        adapters: Hub ids or folders of the adapters.
        out: Folder that holds one folder for each audit.
        budget: Number of tokens of each audit.
        max_new_tokens: Length of a reply at most.
        seed: Random seed.
        texts: Prompts; the built-in ones if there are none.
        reading: Options that say how prompts are read.
        loading: Options that say how models are loaded.
    """

    base: str
    adapters: Sequence[str]
    out: Path
    budget: int
    max_new_tokens: int
    seed: int
    texts: Sequence[str]
    reading: dict[str, Any]
    loading: dict[str, Any]

    def folder(self, adapter: str) -> Path:
        """Folder of the audit of an adapter."""
        return self.out / (Path(adapter).name if is_adapter(adapter) else adapter).replace(
            "/", "--"
        )

    def left(self) -> list[str]:
        """Adapters that have not been audited."""
        return [a for a in self.adapters if not (self.folder(a) / FINDINGS).exists()]

    def settings(self) -> dict[str, Any]:
        """Settings that all audits in a folder share, JSON-able."""
        names = ("base", "budget", "max_new_tokens", "seed", "reading")
        return {**{name: getattr(self, name) for name in names}, "prompts": list(self.texts)}

    def check(self) -> None:
        """Refuse a folder that cannot hold these audits.

        Raises:
            MelboError: It holds audits of other settings, or two adapters have the same name.
        """
        names = [self.folder(adapter).name for adapter in self.adapters]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise MelboError(f"two adapters would be audited into {self.out / twice}: give one")
        path, now = self.out / _SETTINGS, self.settings()
        if not path.exists():
            return
        then = json.loads(path.read_text(encoding="utf-8"))
        differ = [name for name in now if then.get(name) != now[name]]
        if differ:
            raise MelboError(
                f"{self.out} holds audits of other settings ({', '.join(differ)}): "
                "give another --out"
            )

    def parts(self, lm: LanguageModel) -> Parts:
        """Prompts as a model reads them."""
        read = partial(as_prompts, lm, reading=self.reading)
        return Parts.split(read(self.texts)) if self.texts else Parts.built_in(lm, read)

    def least(self) -> int:
        """Fewest tokens that an audit takes, by the base's tokenizer; no model is loaded.

        Raises:
            MelboError: There is no such tokenizer, or the prompts cannot be read.
        """
        unread = cast(LanguageModel, _Unread(self.base))
        parts, num = self.parts(unread), len(usual_elicitors(unread))
        costs = Costs.of(parts.screening, self.max_new_tokens, _JUDGES)
        proof = ProofCosts.of(parts, self.max_new_tokens, speakers=_JUDGES)
        a_proof = proof.controls + proof.a_theme
        return Budget(sys.maxsize, costs, num, _JUDGES, a_proof).least(1)

    def run(self, adapter: str, base: LanguageModel) -> dict[str, Any]:
        """Audit one, or go on with it.

        Args:
            adapter: The adapter.
            base: The base, which is left as it is.

        Raises:
            MelboError: The adapter cannot be found or does not fit the base, or the audit refuses.
        """
        path = _local(adapter)
        named = base_of(path)
        if Path(named).name.casefold() != Path(self.base).name.casefold():
            say(f"{adapter} says that it was trained on {named}: given is {self.base}")
        lm = with_adapter(
            load(self.base, dict(self.loading)), path, adapter, self.loading.get("blocks")
        )
        audit = Audit(
            lm,
            self.parts(lm),
            base=base,
            budget=self.budget,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )
        out = self.folder(adapter)
        result = audit.run(out)
        write_atomically({(out / FINDINGS).with_suffix(".html"): page(result).encode()})
        return result


class _Unread:
    """A tokenizer in the place of its model, for reading prompts.

    Raises:
        MelboError: There is no such tokenizer.
    """

    max_length = None

    def __init__(self, name: str) -> None:
        self.name, self.model = name, self
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(bundled() if name == ALIAS else name)
        # as many kinds of errors as there are of folders
        except Exception as err:
            raise MelboError(
                f"no tokenizer in {name!r} ({first_line(err)}): expected a hub id or a local folder"
            ) from err

    def get_input_embeddings(self) -> None:
        """See transformers; ids are not held against embeddings that are not there."""


def _local(adapter: str) -> str:
    """Folder of an adapter, fetched from the hub where it is none.

    Raises:
        MelboError: It cannot be fetched, or is no adapter.
    """
    if is_adapter(adapter):
        return adapter
    try:
        path = snapshot_download(adapter)
    except Exception as err:  # of the network, the hub and the disk
        raise MelboError(
            f"no adapter {adapter!r} ({first_line(err)}): expected a hub id, or a folder with "
            "adapter_config.json"
        ) from err
    if not is_adapter(path):
        raise MelboError(f"{adapter} holds no adapter_config.json: expected an adapter")
    return path


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--base", default=KNOWN["base"], help="Base of all adapters.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help="Hub id or folder; may be given again; by default AuditBench's on its base.",
)
@click.option("--out", type=folder, required=True, help="Folder with one folder for each audit.")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=TOKENS,
    help="Tokens of each.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be loaded and done, and stop.")
@prompt_options
@reading_options
@reply_length_option(REPLY_TOKENS)
@seed_option
@loading_options
def auditbench(
    base: str, adapters: tuple[str, ...], out: Path, budget: int, dry_run: bool, **options: Any
) -> None:
    """Audit public organisms with their base given, and write the findings of each."""
    texts = read_prompts(options, at_least=0)
    reading, loading = take(options, *READING), take(options, *LOADING)
    chosen = adapters or tuple(KNOWN["adapters"])
    job = Job(base, chosen, out, budget, **options, texts=texts, reading=reading, loading=loading)
    job.check()
    if dry_run:
        _tell(job)
    else:
        _audit(job)


def _tell(job: Job) -> None:
    """Print what would be loaded and done."""
    left, least = job.left(), job.least()
    click.echo(f"base     {job.base}")
    for adapter in job.adapters:
        begun = (job.folder(adapter) / LOG).exists()
        state = ("begun" if begun else "to do") if adapter in left else "done"
        kept = "a folder" if is_adapter(adapter) else "from the hub"
        click.echo(f"{state:<9}{adapter} ({kept}) in {job.folder(adapter)}")
    click.echo(
        f"{len(left)} of {len(job.adapters)} audits to go, {job.budget} tokens each; "
        f"the least that will do, by the tokenizer of the base, is {least}"
    )


def _audit(job: Job) -> None:
    """Audit adapters one by one; one that fails does not stop the others.

    Raises:
        MelboError: The budget is too small, or some failed; says how many.
    """
    left = job.left()
    if not left:
        say("all are done")
        return
    least = job.least()
    if job.budget < least:
        raise MelboError(
            f"the budget is {job.budget} tokens, one round takes {least}: raise --budget, or give "
            "fewer prompts or shorter replies"
        )
    refuse_existing(job.out, True, [_SETTINGS], "audits")
    base = load(job.base, dict(job.loading))
    job.out.mkdir(parents=True, exist_ok=True)
    write_atomically({job.out / _SETTINGS: to_json(job.settings())})
    failed: list[str] = []
    for adapter in left:
        try:
            result = job.run(adapter, base)
        except MelboError as err:
            failed.append(adapter)
            say(f"{adapter}: {err}")
            continue
        say(f"{adapter}: {len(result['findings'])} findings in {job.folder(adapter)}")
    if failed:
        raise MelboError(
            f"{len(failed)} of {len(left)} audits failed ({', '.join(failed)}): "
            "see above, and give the same command again"
        )


if __name__ == "__main__":
    # `main` ends any command with one line and exit code 2 where the input is bad
    main(cast(click.Group, auditbench))

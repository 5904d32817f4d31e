"""Options of help pages, grouped by the question that they answer."""

import click

#: Options under the heading that they are listed under, headings in their order on a page.
SECTIONS = {
    "What to look at": (
        *("--prompt", "--prompts", "--system", "--text", "--template", "--template-arg"),
        *("--prefix", "--validation", "--held-out", "--test", "--reference", "--context"),
        *("--pairs", "--plus", "--minus", "--positive", "--negative", "--base"),
    ),
    "Where in the model": (
        *("--source", "--target", "--target-tokens", "--positions", "--skip-first", "--read"),
        *("--normalise-target", "--concatenate", "--band", "--matrix", "--layer", "--layers"),
    ),
    "How to search": (
        *("--method", "--num-factors", "--scale", "--nonlinearity", "--max-steps", "--tol"),
        *("--steps", "--vectors-per-batch", "--orthogonalise", "--start", "--seeds"),
        *("--recipe", "--times", "--num", "--opening", "--after-sentence", "--budget"),
        *("--elicitor", "--dictionary", "--coefficient", "--truncation", "--architecture"),
        *("--latents", "--k", "--sparsity", "--tokens", "--batch", "--rate", "--draws"),
    ),
    "How to steer": (
        *("--feature", "--average", "--strength", "--where", "--side", "--embedding"),
        "--together",
    ),
    "How to reply": ("--max-new-tokens", "--temperature", "--batch-size"),
    "How to judge": ("--by", "--contrast", "--controls", "--judge", "--answers"),
    "What to write and show": (
        *("--out", "--force", "--top", "--latent", "--random", "--picture", "--json"),
    ),
    "Model and machine": (
        *("--model", "--endpoint", "--dtype", "--bits", "--device", "--device-map", "--tf32"),
        *("--threads", "--tokens-per-pass", "--compile", "--trust-remote-code", "--blocks"),
        *("--host", "--port"),
    ),
}
_OTHER = "Other"


def section_of(param: click.Parameter) -> str:
    """Heading that an option is listed under."""
    names = set(param.opts)
    return next((title for title, some in SECTIONS.items() if names & set(some)), _OTHER)


def write_sections(
    params: list[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    """Write the options of a command, each under its heading.

    Args:
        params: Parameters of the command; arguments have no place among options.
        ctx: Context of the command.
        formatter: Page that is written.
    """
    under: dict[str, list[tuple[str, str]]] = {title: [] for title in (*SECTIONS, _OTHER)}
    for param in params:
        if (record := param.get_help_record(ctx)) is not None:
            under[section_of(param)].append(record)
    for title, records in under.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)

"""Options that several commands share, each defined once."""

from collections.abc import Callable
from typing import Any

import click

__all__ = [
    "asked_options",
    "device_option",
    "field_options",
    "json_option",
    "method_options",
    "model_options",
    "query_options",
    "saved_options",
    "space_option",
    "store_option",
]

Command = Callable[..., Any]


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


store_option = click.option(
    "--store", required=True, envvar="CURATOR_STORE", metavar="DIR", help="The store's directory. [env: CURATOR_STORE]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table.")
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:1. Ingest takes several: cuda:0,cuda:1.",
)

field_options = _all(
    click.option("--text-field", metavar="COLUMN", help="The column with the text."),
    click.option("--prompt-field", metavar="COLUMN", help="The prompt's column; only the response counts."),
    click.option("--response-field", metavar="COLUMN", help="The response's column."),
    click.option(
        "--messages-field", metavar="COLUMN", help="The column with a conversation; the assistant's turns count."
    ),
    click.option(
        "--shape",
        type=click.Choice(["chat", "prompt", "text", "preference"]),
        help="What rows are, where no column is named. [default: what their columns say]",
    ),
    click.option("--id-field", metavar="COLUMN", help="Your own id of a row; it becomes the sample's key."),
)
model_options = _all(
    click.option("--model", metavar="MODEL", help="A model's directory, or its name on the Hugging Face hub."),
    click.option("--adapter", metavar="ADAPTER", help="A PEFT adapter over it: a directory or a name on the hub."),
    device_option,
)
space_option = click.option("--space", metavar="FINGERPRINT", help="Its first characters. [default: the newest space]")
asked_options = _all(
    click.option("--text", metavar="T", help="Value against this text."),
    click.option("--prompt", metavar="P", help="Value against a response to this prompt (with --response)."),
    click.option("--response", metavar="R", help="The response; only its tokens count."),
    click.option("--data", multiple=True, metavar="FILE", help="Value against the rows of a file: their mean."),
    click.option("--saved", metavar="NAME", help="Value against a saved query (curator queries save)."),
    click.option("--expr", metavar="E", help="""Value against saved queries, as in: "good - 0.5 * bad"."""),
    field_options,
)
method_options = _all(
    click.option(
        "--method",
        type=click.Choice(["raw", "cosine", "preconditioned"]),
        default="raw",
        show_default=True,
        help="raw: the paper's value. cosine: free of length. preconditioned: an influence function of the last layer.",
    ),
    click.option("--damping", type=float, default=10.0, show_default=True, help="Larger is nearer to raw."),
)
saved_options = _all(asked_options, space_option, model_options)
query_options = _all(
    asked_options,
    click.option("--each", is_flag=True, help="One answer for every row of --data."),
    click.option("--by", metavar="COLUMN", help="One answer for every value of this column of --data."),
    method_options,
    click.option("--where", metavar="FILTER", help="""Only samples like: label = "x" and num_tokens < 200"""),
    space_option,
    model_options,
)

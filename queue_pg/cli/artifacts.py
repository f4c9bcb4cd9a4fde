"""`artifacts`: list, get and put the files of a job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from queue_pg.cli.connect import open_queue
from queue_pg.cli.output import Column, DatabaseUrl, JsonFlag, print_json, print_line, print_table, say
from queue_pg.cli.text import printable
from queue_pg.cli.values import parse_id
from queue_pg.content import BlockingContent
from queue_pg.errors import InvalidArtifact

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The artifact, such as logs/out.txt.", show_default=False)]


class ArtifactsGroup(TyperGroup):
    """Takes `artifacts ID` for `artifacts list ID`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command to run; what is none is an id."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["list", *args])


def register(app: typer.Typer) -> None:
    """Add the commands."""
    artifacts = typer.Typer(
        cls=ArtifactsGroup,
        help="List a job's artifacts: artifacts ID; get and put them.",
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    artifacts.command("list")(list_artifacts)
    artifacts.command("get")(get)
    artifacts.command("put")(put)
    app.add_typer(artifacts, name="artifacts")


def list_artifacts(job_id: JobId, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List a job's artifacts. In a pipe: one name per line."""
    with open_queue(database_url) as queue:
        found = queue.artifacts(parse_id(job_id))
    if as_json:
        print_json({"artifacts": found})
    elif sys.stdout.isatty():
        print_table(
            [
                Column("name"),
                Column("bytes", right=True, whole=True),
                Column("type"),
                Column("try", right=True, whole=True),
                Column("created", whole=True),
                Column("sha256"),
            ],
            [
                (each.name, f"{each.size:,}", each.content_type, each.attempt, each.created_at, each.sha256)
                for each in found
            ],
            empty="No artifacts.",
        )
    else:
        for each in found:
            print_line(printable(each.name))


def get(
    job_id: JobId,
    name: Name,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="A file, replaced when there is one, or - for standard output."),
    ] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Read an artifact; without --output into a new file of its name in this folder."""
    with open_queue(database_url) as queue:
        reader = queue.open_artifact(parse_id(job_id), name)
        if output == "-":
            sys.stdout.flush()
            for piece in reader:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        # The stored name, whose last segment is safe as the name of a file.
        path = Path(output or reader.artifact.name.rpartition("/")[2])
        if output is None and path.exists():
            raise InvalidArtifact("output", f"{str(path)!r} is there already.", hint="Give --output to replace it.")
        try:
            reader.save(path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InvalidArtifact("output", f"cannot write {str(path)!r}: {reason}.") from None
    say(f"{reader.artifact.size:,} bytes in {path}")


def put(
    job_id: JobId,
    name: Name,
    source: Annotated[str, typer.Argument(metavar="FILE", help="The content; - is standard input.")],
    content_type: Annotated[
        str | None, typer.Option(help="Such as text/plain; default: what the name suggests.")
    ] = None,
    lease_token: Annotated[int | None, typer.Option(help="That of the claim; needed while the job runs.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Store an artifact; one of the same name is replaced. Prints the SHA-256 of its content."""
    content: BlockingContent = sys.stdin.buffer if source == "-" else Path(source)
    with open_queue(database_url) as queue:
        made = queue.put_artifact(parse_id(job_id), name, content, content_type=content_type, lease_token=lease_token)
    if as_json:
        print_json(made)
    else:
        print_line(made.sha256)

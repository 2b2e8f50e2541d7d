"""`nestvec train`: one group for everything that learns from a user's own data."""

from __future__ import annotations

import typer

from nestvec.cli import train_ehi, train_encoder, train_run, train_tower

train = typer.Typer(no_args_is_help=True, help="Train on your own texts and queries.")


def register(app: typer.Typer) -> None:
    """Add the group to `app`, and each module's verbs to the group."""
    app.add_typer(train, name="train")
    for verbs in (train_encoder, train_tower, train_run, train_ehi):
        verbs.register(train)

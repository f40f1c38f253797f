"""Options of `run --view`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import say
from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    from m2h_deploy.sinks import Sink

view_option = partial(typer.Option, rich_help_panel="Rerun")

ViewFlag = Annotated[bool, view_option("--view", help="Show panes and latency live in a browser.")]
ViewHostOption = Annotated[
    str | None,
    view_option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for every network.", show_default="127.0.0.1"),
]
ViewPortOption = Annotated[
    int | None, view_option(metavar="PORT", help="For the page; the data is on the next port.", show_default="9875")
]
ViewStayFlag = Annotated[bool, view_option("--view-stay", help="Keep the view after the last frame, until Ctrl-C.")]


@dataclass(frozen=True)
class View:
    """Address of the view, and its duration."""

    host: str
    port: int
    stay: bool


def view_of(view: bool, host: str | None, port: int | None, *, stay: bool) -> View | None:
    """Return what the options describe; None without --view. Raises M2HError if it cannot be served."""
    if not view:
        if host is not None or port is not None or stay:
            raise M2HError("--view-host, --view-port and --view-stay are for --view: give that too")
        return None
    from m2h_deploy.sinks.view import check_view
    from m2h_deploy.sinks.view_server import PORT

    found = View("127.0.0.1" if host is None else host, PORT if port is None else port, stay)
    check_view(found.host, found.port)
    return found


def tell_view(view: View, page: str) -> None:
    """Say on stderr where the view is, and who can see it."""
    say(f"view: {page}")
    if not ipaddress.ip_address(view.host).is_loopback:
        say("anyone on the network can see this view: without --view-host only this machine can", "yellow")


def keep_view(sinks: list[Sink]) -> None:
    """Keep the view until Ctrl-C."""
    from m2h_deploy.sinks.view import LiveView

    for sink in sinks:
        if isinstance(sink, LiveView):
            say("the last frame is done: the view stays until Ctrl-C")
            sink.wait()

"""The Flask application: the table of routes, one error handler, and nothing else."""

from __future__ import annotations

from functools import partial

from flask import Flask

from plugin.errors import MAX_BODY, answer_error
from plugin.ipam_driver import IpamCalls, IpamDriver
from plugin.network_driver import NetworkCalls, NetworkDriver
from plugin.routes import dispatch, table


def create_app(network: NetworkCalls, ipam: IpamCalls) -> Flask:
    """Build the application that serves the engine's network and IPAM calls."""
    app = Flask(__name__, static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    # Werkzeug would redirect "//Plugin.Activate", with a page of HTML, instead of answering 404.
    app.url_map.merge_slashes = False
    for method, route in table(NetworkDriver(network), IpamDriver(ipam)).items():
        app.add_url_rule(
            f"/{method}",
            # No dot: Flask takes what precedes one for the name of a blueprint.
            endpoint=method.replace(".", "-"),
            view_func=partial(dispatch, method, route),
            methods=["POST"],
            provide_automatic_options=False,
        )
    app.register_error_handler(Exception, answer_error)
    return app

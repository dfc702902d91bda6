"""The router's command-line arguments about access; like its others they also come from the environment.

The admin key itself has no argument, since every user of a machine can read command lines: it comes from a file or from
VECTORFLEET_ADMIN_KEY. Authentication is on as soon as anything is given that it needs; `--auth required` switches it on by
itself, so that a Secret which is missing leaves a router shut, not open.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from router.access.admin_key import AdminKey
from router.access.jwt_tokens import CLAIM_DEFAULT, LEEWAY_DEFAULT_S, JwtRules
from router.access.settings import AccessSettings
from vectorfleet.cluster.key_record import Limits

ADMIN_KEY_VARIABLE: Final = "VECTORFLEET_ADMIN_KEY"


def add_access_arguments(parser: argparse.ArgumentParser, environment: Mapping[str, str] = os.environ) -> None:
    """Adds them, with defaults from the environment."""
    group = parser.add_argument_group("access")

    def add(name: str, text: str, metavar: str, convert: Callable[[str], object] = str, fallback: object = "") -> None:
        variable = f"VECTORFLEET_{name.upper().replace('-', '_')}"
        default = environment.get(variable, fallback)
        shown = "" if fallback in ("", 0.0) else f" (default {fallback})"
        group.add_argument(
            f"--{name}", metavar=metavar, type=convert, default=default, help=f"{text}{shown} [env {variable}]"
        )

    add(
        "auth",
        "'required': calls need a credential; 'off'; default: required where an argument below is given",
        "MODE",
        _mode,
    )
    add("admin-key-file", f"holds the admin key; or {ADMIN_KEY_VARIABLE}", "FILE")
    add("jwks-file", "keys that sign tokens, a JWK set; read again when it changes", "FILE")
    add("jwks-url", "the same from an identity provider", "URL")
    add("jwt-audience", "what a token's aud must name; required with a JWK set", "NAME")
    add("jwt-issuer", "what a token's iss must be; none: any", "NAME")
    add("jwt-leeway-s", "how far clocks may differ", "SECONDS", _number, LEEWAY_DEFAULT_S)
    add("jwt-scope-claim", "the claim that holds the scopes", "NAME", str, CLAIM_DEFAULT)
    add(
        "jwt-grants-file",
        "scopes by subject, for tokens without any: TOML, SUBJECT = [SCOPE, …]; read again as well",
        "FILE",
    )
    add("limit-calls-per-s", "calls a second of one caller, on this router; 0: no limit", "N", _number, 0.0)
    add("limit-points-per-s", "points written and queries asked, a second", "N", _number, 0.0)
    add("limit-points-per-day", "the same, a day", "N", _number, 0.0)
    add("audit-log", "a file that gets a JSON line for each call denied, written or administered; '-': stdout", "PATH")
    add("audit-reads", "the share of reads that get one too, 0 to 1", "SHARE", _share, 0.0)


def access_settings_of(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> AccessSettings:
    """Reads what the arguments name.

    Raises:
        ValueError: they contradict one another, or a file does not hold what it should.
        OSError: a file cannot be read.
    """
    jwks: Path | str = Path(arguments.jwks_file) if arguments.jwks_file else arguments.jwks_url
    given = bool(arguments.admin_key_file or jwks or ADMIN_KEY_VARIABLE in environment)
    if arguments.jwks_file and arguments.jwks_url:
        raise ValueError("--jwks-file and --jwks-url exclude each other")
    if arguments.admin_key_file and ADMIN_KEY_VARIABLE in environment:
        raise ValueError(f"--admin-key-file and {ADMIN_KEY_VARIABLE} exclude each other")
    if bool(jwks) != bool(arguments.jwt_audience):
        raise ValueError(
            "--jwt-audience goes with --jwks-file or --jwks-url: a token for another service must not open this one"
        )
    if arguments.jwt_grants_file and not jwks:
        raise ValueError("--jwt-grants-file goes with --jwks-file or --jwks-url")
    if arguments.auth == "off" and given:
        raise ValueError("--auth off contradicts the admin key or the JWK set that is given: leave one of the two out")
    admin_key = None
    if arguments.admin_key_file:
        admin_key = AdminKey(Path(arguments.admin_key_file))
    elif ADMIN_KEY_VARIABLE in environment:
        admin_key = AdminKey(environment[ADMIN_KEY_VARIABLE])
    rules = JwtRules(arguments.jwt_audience, arguments.jwt_issuer, arguments.jwt_leeway_s, arguments.jwt_scope_claim)
    return AccessSettings(
        required=given or arguments.auth == "required",
        admin_key=admin_key,
        jwks=jwks,
        jwt=rules if jwks else None,
        jwt_grants=Path(arguments.jwt_grants_file) if arguments.jwt_grants_file else None,
        limits=Limits(arguments.limit_calls_per_s, arguments.limit_points_per_s, arguments.limit_points_per_day),
        audit_log=arguments.audit_log,
        audit_reads=arguments.audit_reads,
    )


def _mode(value: str) -> str:
    if value not in ("", "required", "off"):
        raise argparse.ArgumentTypeError(f"{value!r} is neither 'required' nor 'off'")
    return value


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from 0 on")
    return number


def _share(value: str) -> float:
    number = _number(value)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from 0 to 1")
    return number

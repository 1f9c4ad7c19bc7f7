"""The same policy for brokers other than Mosquitto: EMQX 5 (configuration and ACL file) and RabbitMQ 4 (definitions).

What gateways may do follows their certificate's common name, as everywhere. Claims want a node (EMQX) or a server
(RabbitMQ) of their own, for the reason in `fleet`: unauthenticated clients must not share client ids with gateways.

Invariant: these files are rendered and checked for shape; only Mosquitto is run in our tests.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from broker_config import files
from broker_config.fleet import FleetConfig
from broker_config.policy import OWNER, SERVICE_USER, Action, Grant, Side, grants
from wire_protocol.topics import Role

EMQX_CONF: Final = Path("emqx/emqx.conf")
EMQX_ACL: Final = Path("emqx/acl.conf")
RABBITMQ_CONF: Final = Path("rabbitmq/rabbitmq.conf")
RABBITMQ_DEFINITIONS: Final = Path("rabbitmq/definitions.json")
MESSAGES_PER_S: Final = 200  # of one gateway; EMQX makes a faster client wait, Mosquitto has no such bound


def render_emqx(config: FleetConfig) -> dict[Path, str]:
    """EMQX's files: gateways over TLS by certificate, workers by password, ACL by user name, everything else denied."""
    return {EMQX_CONF: files.text(_emqx_conf(config)), EMQX_ACL: files.text(_emqx_acl())}


def _emqx_conf(config: FleetConfig) -> Iterator[str]:
    limits = config.limits
    yield "# EMQX 5. Rendered from Stocktide's topic policy."
    yield "mqtt {"
    yield "  peer_cert_as_username = cn"
    yield "  peer_cert_as_clientid = cn"
    yield f"  max_packet_size = {limits.packet_bytes_max}B"
    yield f"  max_inflight = {limits.inflight_messages_max}"
    yield f"  max_mqueue_len = {limits.queued_messages_max}"
    yield f"  session_expiry_interval = {limits.session_days_max}d"
    yield "}"
    yield "listeners.ssl.gateways {"
    yield f"  bind = {files.quoted(f'{config.address}:{config.gateway_port}')}"
    yield f"  max_connections = {limits.connections_max}"
    yield f'  messages_rate = "{MESSAGES_PER_S}/s"'
    yield "  enable_authn = false  # the certificate is the proof"
    yield "  ssl_options {"
    yield f"    cacertfile = {files.quoted(config.tls.cafile)}"
    yield f"    certfile = {files.quoted(config.tls.certfile)}"
    yield f"    keyfile = {files.quoted(config.tls.keyfile)}"
    yield "    verify = verify_peer"
    yield "    fail_if_no_peer_cert = true"
    yield '    versions = ["tlsv1.3", "tlsv1.2"]'
    yield "  }"
    yield "}"
    yield "listeners.tcp.workers {"
    yield f"  bind = {files.quoted(f'{config.worker_address}:{config.worker_port}')}"
    yield "  enable_authn = quick_deny_anonymous"
    yield "}"
    yield "listeners.tcp.default.enable = false"
    yield "listeners.ssl.default.enable = false"
    yield "listeners.ws.default.enable = false"
    yield "listeners.wss.default.enable = false"
    yield "authentication = [{"
    yield "  mechanism = password_based, backend = built_in_database, user_id_type = username"
    yield "  password_hash_algorithm { name = pbkdf2, mac_fun = sha512, iterations = 10000 }"
    yield "}]"
    yield "authorization {"
    yield "  no_match = deny"
    yield "  deny_action = ignore"
    yield '  sources = [{ type = file, enable = true, path = "etc/acl.conf" }]'
    yield "}"


def _emqx_acl() -> Iterator[str]:
    yield "%% Rendered from Stocktide's topic policy."
    for role, who in ((Role.INGEST, f'{{username, "{SERVICE_USER[Side.CLOUD]}"}}'), (Role.GATEWAY, "all")):
        for action in Action:
            topics = [_emqx_topic(grant) for grant in _of(role) if grant.action is action]
            yield f"{{allow, {who}, {action}, [{', '.join(topics)}]}}."
    yield "{deny, all}."


def _emqx_topic(grant: Grant) -> str:
    return f'"{grant.pattern.replace(OWNER, "${username}")}"'


def render_rabbitmq(config: FleetConfig, gateways: Iterable[str]) -> dict[Path, str]:
    """RabbitMQ's files. Its users must exist, so the gateways are named; their rights follow `{username}` all the same.

    MQTT topics are AMQP routing keys there, with `.` for `/`, and topic permissions are regular expressions.
    """
    return {
        RABBITMQ_CONF: files.text(_rabbitmq_conf(config)),
        RABBITMQ_DEFINITIONS: json.dumps(_definitions(list(gateways)), indent=2) + "\n",
    }


def _rabbitmq_conf(config: FleetConfig) -> Iterator[str]:
    yield "# RabbitMQ 4 with rabbitmq_mqtt and rabbitmq_auth_mechanism_ssl. Rendered from Stocktide's topic policy."
    yield f"mqtt.listeners.ssl.1 = {config.address}:{config.gateway_port}"
    yield f"mqtt.listeners.tcp.1 = {config.worker_address}:{config.worker_port}"
    yield "mqtt.allow_anonymous = false"
    yield "anonymous_login_user = none"
    yield "mqtt.ssl_cert_login = true"
    yield "ssl_cert_login_from = common_name"
    yield f"mqtt.max_packet_size_authenticated = {config.limits.packet_bytes_max}"
    yield f"mqtt.max_session_expiry_interval_seconds = {config.limits.session_days_max * 86_400}"
    yield f"ssl_options.cacertfile = {config.tls.cafile}"
    yield f"ssl_options.certfile = {config.tls.certfile}"
    yield f"ssl_options.keyfile = {config.tls.keyfile}"
    yield "ssl_options.verify = verify_peer"
    yield "ssl_options.fail_if_no_peer_cert = true"
    yield "ssl_options.versions.1 = tlsv1.3"
    yield "ssl_options.versions.2 = tlsv1.2"
    yield "load_definitions = /etc/rabbitmq/definitions.json"


def _definitions(gateways: Sequence[str]) -> dict[str, Any]:
    service = SERVICE_USER[Side.CLOUD]
    queue = "^mqtt-subscription-.*$|^mqtt-will-.*$"
    # No password hash: the certificate is the proof, or the operator's `rabbitmqctl change_password` for the workers.
    users = [{"name": name, "password_hash": "", "tags": ""} for name in (service, *gateways)]
    permissions = [
        {
            "user": user["name"],
            "vhost": "/",
            "configure": queue,
            "write": f"{queue}|^amq\\.topic$",
            "read": f"{queue}|^amq\\.topic$",
        }
        for user in users
    ]
    topic_permissions = [
        {
            "user": name,
            "vhost": "/",
            "exchange": "amq.topic",
            "write": _regex(role, Action.PUBLISH),
            "read": _regex(role, Action.SUBSCRIBE),
        }
        for role, names in ((Role.INGEST, [service]), (Role.GATEWAY, gateways))
        for name in names
    ]
    return {
        "vhosts": [{"name": "/"}],
        "users": users,
        "permissions": permissions,
        "topic_permissions": topic_permissions,
    }


def _regex(role: Role, action: Action) -> str:
    """What a role may do as one regular expression over routing keys.

    `read` is asked about the filter of a subscription too, and there `+` is `*` and `#` is `#`.
    """
    patterns = sorted({grant.pattern for grant in _of(role) if grant.action is action})
    return "^(" + "|".join(_level_by_level(pattern) for pattern in patterns) + ")$"


def _level_by_level(pattern: str) -> str:
    made = [
        "{username}" if level == OWNER else "[^.]+" if level == "+" else re.escape(level)
        for level in pattern.split("/")
    ]
    return r"\.".join(made)


def _of(role: Role) -> list[Grant]:
    return [grant for grant in grants(Side.CLOUD) if grant.role is role]

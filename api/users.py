"""Users of a broker with SASL_SSL, and their rights, as `api/users.yaml` declares them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from api import broker
from etl.errors import RefusedError, UnavailableError
from etl.log import logger
from etl.stack.configuration import kafka_password

DECLARATION = Path(__file__).with_name("users.yaml")
ITERATIONS = 8192
KINDS = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "transactional_id": ResourceType.TRANSACTIONAL_ID}
_ANY: Any = None
ALL = AclBindingFilter(ResourceType.ANY, _ANY, ResourcePatternType.ANY, _ANY, _ANY, AclOperation.ANY, AclPermissionType.ANY)
_RIGHT = re.compile(r"(read|write|describe|describe_configs) (topic|group|transactional_id) ([A-Za-z0-9._-]+)(\*?)")


def declared(path: Path = DECLARATION) -> dict[str, list[AclBinding]]:
    """Return the rights of each declared user.

    Raises
    ------
    RefusedError
        When a right is not written as the file says.
    """
    users = {}
    for user, rights in yaml.safe_load(path.read_text()).items():
        users[user] = [_right(user, right, path) for right in rights]
    return users


def _right(user: str, right: str, path: Path) -> AclBinding:
    written = _RIGHT.fullmatch(str(right))
    if written is None:
        raise RefusedError(f"{path.name}: {right} of {user} is no right; write it as: read topic transactions")
    operation, kind, name, star = written.groups()
    pattern = ResourcePatternType.PREFIXED if star else ResourcePatternType.LITERAL
    return AclBinding(KINDS[kind], name, pattern, f"User:{user}", "*", AclOperation[operation.upper()], AclPermissionType.ALLOW)


def apply(users: dict[str, list[AclBinding]]) -> None:
    """Give the broker's users the passwords that stand in their files and the rights that are declared, and no others.

    Raises
    ------
    UnavailableError
        When the broker does not do it.
    """
    admin = AdminClient(broker.client())
    try:
        broker.await_all(admin.alter_user_scram_credentials([_credential(user) for user in users]))
        anybodys = admin.describe_acls(ALL).result(broker.ANSWER_SECONDS)
        wanted = [right for rights in users.values() for right in rights]
        if surplus := [right for right in anybodys if right.principal.removeprefix("User:") in users and right not in wanted]:
            broker.await_all(admin.delete_acls([_filter(right) for right in surplus]))
        if missing := [right for right in wanted if right not in anybodys]:
            broker.await_all(admin.create_acls(missing))
    except KafkaException as error:
        raise UnavailableError(f"the broker at {broker.address()} does not do it: {error.args[0].str()}; is Kafka up?") from error
    logger.info("users", names=", ".join(users), rights_given=len(missing), rights_taken=len(surplus))


def _credential(user: str) -> UserScramCredentialUpsertion:
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS)
    return UserScramCredentialUpsertion(user, info, kafka_password(user).encode())


def _filter(right: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        right.restype, right.name, right.resource_pattern_type, right.principal, right.host, right.operation, right.permission_type
    )

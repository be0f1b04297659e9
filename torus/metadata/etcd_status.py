"""What each member of an etcd cluster says of itself, for `torus meta status`.

Decides nothing; a member that does not answer is part of the answer.
"""

from dataclasses import dataclass

from torus.limits import ETCD_ATTEMPT_S
from torus.metadata.etcd import EtcdMetadata
from torus.metadata.etcd_errors import status
from torus.metadata.etcd_link import Member


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member; all zero or empty where it does not answer."""

    endpoint: str
    answers: bool
    problem: str = ""
    version: str = ""
    member_id: str = ""
    leads: bool = False
    revision: int = 0
    term: int = 0
    db_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """The members that --meta names, and what etcd complains about."""

    members: tuple[MemberStatus, ...]
    alarms: tuple[str, ...]  # such as "NOSPACE on 8e9e05c52164694d"
    cluster_id: str  # etcd's own


def etcd_status(store: EtcdMetadata) -> EtcdStatus:
    """Ask every member, one after the other."""
    link = store.link
    messages, grpc = link.package.messages, link.package.grpc
    members: list[MemberStatus] = []
    alarms: set[str] = set()
    cluster_id = ""
    for member in link.all_members():
        try:
            said = member.maintenance.Status(
                messages.StatusRequest(), timeout=ETCD_ATTEMPT_S, metadata=link.token_headers()
            )
        except grpc.RpcError as exc:
            code, details = status(exc)
            members.append(MemberStatus(member.name, False, f"{code}: {details}"))
            continue
        header = said.header
        cluster_id = f"{header.cluster_id:x}"
        if said.leader:  # without one there is no answer
            alarms.update(_alarms(store, member))
        members.append(
            MemberStatus(
                endpoint=member.name,
                answers=True,
                version=said.version,
                member_id=f"{header.member_id:x}",
                problem="" if said.leader else "has no leader",
                leads=said.leader == header.member_id,
                revision=header.revision,
                term=said.raftTerm,
                db_bytes=said.dbSize,
            )
        )
    return EtcdStatus(tuple(members), tuple(sorted(alarms)), cluster_id)


def _alarms(store: EtcdMetadata, member: Member) -> list[str]:
    messages, grpc = store.link.package.messages, store.link.package.grpc
    asked = messages.AlarmRequest(action=messages.AlarmRequest.GET)
    try:
        raised = member.maintenance.Alarm(
            asked, timeout=ETCD_ATTEMPT_S, metadata=store.link.headers()
        )
    except grpc.RpcError as exc:
        return [f"unknown on {member.name}: {status(exc)[1]}"]
    return [f"{messages.AlarmType.Name(one.alarm)} on {one.memberID:x}" for one in raised.alarms]

"""What the operator decides about access, and the parts that this makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from router.access.admin_key import AdminKey
from router.access.authenticator import Authenticator
from router.access.gate import Gate
from router.access.grants import Grants
from router.access.jwks import Jwks
from router.access.jwt_tokens import JwtRules
from router.access.rates import Rates
from vectorfleet.audit import AuditLog
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.key_record import NO_LIMITS, Limits


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """The command line's part about access. Its text form names files, never what they hold."""

    required: bool = False
    """Whether calls need a credential."""
    admin_key: AdminKey | None = None
    jwks: Path | str = ""
    """A file or a URL; "": tokens are not accepted."""
    jwt: JwtRules | None = None
    jwt_grants: Path | None = None
    """A file of scopes by subject."""
    limits: Limits = NO_LIMITS
    """Of callers whose credential names none."""
    audit_log: str = ""
    """A path, or "-" for stdout; "": none."""
    audit_reads: float = 0.0


class Access:
    """The door of one router, and what must run behind it."""

    def __init__(self, settings: AccessSettings, coordinator: Coordinator) -> None:
        """Puts it together.

        Raises:
            OSError: a file cannot be opened.
            ValueError: a file does not hold what it should.
        """
        self.required = settings.required
        self._authenticator = None
        if settings.required:
            jwks = Jwks(settings.jwks) if settings.jwks else None
            grants = Grants(settings.jwt_grants) if settings.jwt_grants is not None else None
            self._authenticator = Authenticator(coordinator, settings.admin_key, settings.jwt, jwks, grants)
        self._audit = AuditLog(settings.audit_log) if settings.audit_log else None
        guarded = self._authenticator is not None or self._audit is not None or settings.limits != NO_LIMITS
        rates = Rates(settings.limits)
        self.gate = Gate(self._authenticator, rates, self._audit, settings.audit_reads) if guarded else None
        """None: nothing is asked and nothing written, and a call pays nothing for it."""

    @property
    def audit_lines_lost(self) -> int:
        """Lines of the audit log that could not be written, since the start."""
        return 0 if self._audit is None else self._audit.dropped

    async def run(self) -> None:
        """Follows files and URLs until it is cancelled."""
        if self._authenticator is not None:
            await self._authenticator.run()

    def close(self) -> None:
        """Writes what the audit log still holds; may take seconds."""
        if self.gate is not None:
            self.gate.close()
        if self._audit is not None:
            self._audit.close()

"""A bug report shows what is harmless, by a list; all else is named alone."""

from __future__ import annotations

from vectorfleet.telemetry.configuration import WITHHELD, shown


def test_what_nobody_has_looked_at_is_withheld() -> None:
    told = shown({"host": "10.0.0.1", "etcd_password_file": "/run/hunter2", "new_option": "hunter2", "audit_log": ""})
    assert told == {
        "audit_log": "(not set)", "etcd_password_file": WITHHELD, "host": "10.0.0.1", "new_option": WITHHELD,
    }  # fmt: skip


def test_a_password_in_a_url_is_cut_out() -> None:
    told = shown({"otlp_endpoint": "https://me:hunter2@collector:4317/x", "backup_root": ["s3://key:hunter2@bucket/a"]})
    assert told == {"otlp_endpoint": "https://…@collector:4317/x", "backup_root": "['s3://…@bucket/a']"}

"""The errors that m2h-deploy raises on purpose: one clear line each, and an exit code."""

from __future__ import annotations


class M2HError(Exception):
    """Bad input or a bad environment: what is wrong, where, and what to do, in one line. Exit code 2."""

    exit_code = 2


class CheckFailed(M2HError):  # noqa: N818 (a verdict, not a fault)
    """The check that was asked for ran and failed (export check, parity gate, self-test). Exit code 1."""

    exit_code = 1

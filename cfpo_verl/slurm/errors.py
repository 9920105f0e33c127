"""The error of everything that can go wrong before and around a job."""

from cfpo_verl.sites import JobError as SlurmError

__all__ = ["SlurmError"]

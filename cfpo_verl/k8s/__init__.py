"""Runs as KubeRay RayJobs: cluster facts, the manifest, and what runs in its pods."""

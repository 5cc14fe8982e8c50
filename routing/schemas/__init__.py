"""The custom resources' schemas, built from the same limits and sentences as the readers. Pure.

``python -m routing.schemas`` writes what is made of them: manifests/crds/, manifests/install.yaml
and docs/resources.md. A test fails when a file is not what it would write.
"""

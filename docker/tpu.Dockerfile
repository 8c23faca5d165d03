# ul2 on TPU, a TPU VM or a pod of GKE (scripts/launch_xpk.sh --docker_image).
#
#   docker build --file docker/tpu.Dockerfile --tag ul2:tpu .
#   docker run --privileged --net host ul2:tpu train --help
#
# EXTRAS: any of files, tasks (seqio, with TensorFlow), with commas.

FROM python:3.12-slim

ARG EXTRAS=files
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/ul2
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ul2 ul2
COPY configs configs
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" "jax[tpu]==0.10.2"

# XPK starts a shell in the pod, so there is no entry point; root owns the chips there.
WORKDIR /app
CMD ["ul2", "--help"]

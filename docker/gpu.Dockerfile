# ul2 on NVIDIA GPUs: CUDA comes as wheels of jax, so the image has none of its own.
#
#   docker build --file docker/gpu.Dockerfile --tag ul2:gpu .
#   docker run --gpus all --volume "$PWD/runs:/app/runs" ul2:gpu train --help
#
# EXTRAS: any of files, tasks (seqio, with TensorFlow), plan, with commas.

FROM python:3.12-slim

ARG EXTRAS=files
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/ul2
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ul2 ul2
COPY configs configs
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" "jax[cuda12]==0.10.2"

# Runs, stores and one's own gin files are mounted here; `--user` fits another owner.
WORKDIR /app
RUN useradd --uid 1000 --create-home ul2 && chown ul2 /app
USER 1000
ENTRYPOINT ["ul2"]
CMD ["--help"]

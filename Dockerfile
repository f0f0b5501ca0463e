# docker build -t diffseg .                              # for CPUs
# docker build -t diffseg --build-arg DEVICE=cuda .      # for GPUs, to be run with --gpus all
# docker run --rm -v "$PWD:/work" diffseg segment photo.jpg --out segments
# docker run --rm -v "$PWD:/work" --entrypoint diffseg-eval diffseg
FROM python:3.11-slim

ARG DEVICE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# PyTorch first: the largest layer by far, and the one that changes least. Its wheels bring CUDA along.
WORKDIR /src
COPY constraints.txt ./
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN case "$DEVICE" in \
      cpu) pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch ;; \
      cuda) pip install --constraint constraints.txt torch ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac

COPY . .
# Not as root. Models from the hub are kept in /home/user/.cache: mount a volume there to keep them.
RUN pip install --constraint constraints.txt . && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /work
ENTRYPOINT ["diffseg"]
CMD ["--help"]

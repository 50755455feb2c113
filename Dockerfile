# samestep with what it needs. torch is what pip finds: the build for NVIDIA GPUs, unless pip's settings name a place
# that has another, as a build argument:
#     docker build -t registry.example/samestep:0.1.0 .
#     docker build -t registry.example/samestep:0.1.0-cpu --build-arg TORCH_INDEX=ADDRESS_OF_CPU_BUILDS .
# Replicas of one run need one image: other versions may give other bits, and are refused.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# A user without rights, by number so that Kubernetes can see that it is not root. Mount the run folder at /run.
RUN useradd --uid 1000 --create-home samestep

ARG TORCH=2.13.0
# torch first, in a layer of its own: it is the largest, and what depends on it would bring its newest version.
ARG TORCH_INDEX=""
RUN PIP_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir --disable-pip-version-check "torch==${TORCH}"

WORKDIR /opt/samestep
COPY pyproject.toml README.md LICENSE ./
COPY samestep ./samestep
COPY recipes ./recipes
# Extras: s3 reads data from buckets. The libraries are held to what pyproject.toml allows.
ARG EXTRAS=s3
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --disable-pip-version-check ".[${EXTRAS}]"

USER 1000
WORKDIR /home/samestep

# A run ends by itself; nothing listens that could be asked whether it is well.
HEALTHCHECK NONE
ENTRYPOINT ["samestep"]
CMD ["--help"]

# uae-lightning in an image: for a CUDA card, or for a CPU alone.
#
#   docker build -t uae .                                            torch with its CUDA libraries
#   docker build -t uae:cpu --build-arg DEVICE=cpu .                 torch without
#   docker run --rm --gpus all -v "$PWD:/work" uae run --config demo
#   docker run --rm -v "$PWD:/work" uae:cpu generate "a red cat at the center"
#   docker run --rm -p 127.0.0.1:7860:7860 -e UAE_APP_PASSWORD uae:cpu app --host 0.0.0.0 --port 7860
#
# The folder here is /work there: runs and pictures go to it, and its own conf/ comes before the one of the package.
# Where it is not that of user 1000: --user "$(id -u):$(id -g)".
# A card needs the NVIDIA container toolkit on the host and nothing else of CUDA. Versions are those of `make .venv`, by
# hash. Not built here: no machine with a Docker daemon was at hand; a test holds this file to the Makefile and builds
# the wheel from what .dockerignore leaves.
FROM python:3.11-slim

ARG DEVICE=cuda
ARG TORCH=torch==2.13.0

WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r constraints.txt
RUN case "$DEVICE" in \
      cuda) pip install --no-cache-dir "$TORCH" ;; \
      cpu) pip install --no-cache-dir "$TORCH" --index-url https://download.pytorch.org/whl/cpu ;; \
      *) echo "error: --build-arg DEVICE=$DEVICE is neither cuda nor cpu" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY callbacks callbacks
COPY conf conf
COPY uae_lightning uae_lightning
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check

ENV OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HOME=/work
RUN useradd --create-home uae && mkdir /work && chown uae /work
USER uae
WORKDIR /work
ENTRYPOINT ["uae"]

# The project in a container.
#   docker build -t marl-engine .                                      with a CPU
#   docker build -t marl-engine --build-arg TORCH_INDEX=https://pypi.org/simple .   with CUDA (several GB); run --gpus all
#   docker run --rm -v "$PWD/outputs:/marl-engine/outputs" marl-engine python scripts/train.py algo=mappo
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# g++ builds the kernels when they are first needed. PACKAGES: more of Debian's, such as chromium chromium-driver.
ARG PACKAGES=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home marl
WORKDIR /marl-engine

# Where torch comes from: builds there that are called 2.13.0+cpu are preferred to PyPI's 2.13.0, which bring CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras of pyproject.toml: dev has what the tests need.
ARG EXTRAS=export,serve,video

# Dependencies first: they are installed again only where these files change.
COPY pyproject.toml constraints.txt README.md ./
RUN mkdir marl agents envs && touch marl/__init__.py agents/__init__.py envs/__init__.py \
    && pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" -c constraints.txt -e ".[${EXTRAS}]"

COPY --chown=marl:marl . .
RUN mkdir -p outputs multirun && chown marl:marl . outputs multirun
USER marl
CMD ["python", "scripts/train.py", "algo=mappo"]

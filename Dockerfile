# A sweep on a GPU:  docker build -t llm-bench . && docker run --rm --gpus all -v llm-bench:/data/outputs llm-bench sweeps=headline
# With attn=flash2:  docker build --target flash -t llm-bench .   (compiles for an hour or so)
# Not built yet on any machine of ours, for none has Docker: the workflow `image` does, and until it has run this is unverified.

# No wheel of FlashAttention-2 is published for this torch, so it is compiled. The CUDA here needs the major of torch's own: 13.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS flash-attn
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV PATH=/venv/bin:$PATH
COPY requirements.lock /
RUN python3 -m venv /venv && pip install --no-cache-dir --requirement /requirements.lock ninja packaging setuptools wheel
# Compute capabilities as its setup.py spells them; each compiler at once takes some GB of memory
ARG FLASH_ATTN_CUDA_ARCHS="80;90;100;120"
ARG MAX_JOBS=4
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels flash-attn==2.8.3.post2

# torch brings its own CUDA libraries: of the host only the driver is needed, 580 or newer for CUDA 13.
FROM ubuntu:24.04 AS bench
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A compiler and Python's headers: Triton builds its launchers with them, flex attention on a CPU its kernels.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ git python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

# ubuntu:24.04 has a user with the number that the first new one would get
RUN userdel --remove ubuntu && useradd --create-home bench \
 && install --directory --owner bench /data /data/outputs /home/bench/.cache
USER bench
WORKDIR /data
ENV PATH=/home/bench/venv/bin:$PATH

# The lock file alone first: the layer with torch is built again only when it changes. Here pip finds torch with CUDA.
COPY requirements.lock /home/bench/
RUN python3 -m venv /home/bench/venv && pip install --no-cache-dir --requirement /home/bench/requirements.lock

COPY --chown=bench . /home/bench/llm-bench
RUN pip install --no-cache-dir --no-deps /home/bench/llm-bench

VOLUME ["/data/outputs", "/home/bench/.cache"]
ENTRYPOINT ["bench"]
CMD ["-m", "quant=fp16,int8,nf4", "batch=1,8,32"]

FROM bench AS flash
COPY --from=flash-attn /wheels /home/bench/wheels
RUN pip install --no-cache-dir --no-deps /home/bench/wheels/*.whl einops==0.8.2

FROM bench

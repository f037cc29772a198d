# A sweep on a GPU:  docker build -t llm-bench . && docker run --rm --gpus all -v llm-bench:/data/outputs llm-bench sweeps=headline
# Not built yet on any machine of ours, for none has Docker: the workflow `image` does, and until it has run this is unverified.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

# A compiler and Python's headers: Triton builds its launchers with them, flex attention on a CPU its kernels.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home bench && install --directory --owner bench /data /data/outputs /home/bench/.cache
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

# From the wheels of `make dist`:
#   docker build --tag foundry .
#   docker build --tag foundry:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/experiments" foundry train lstm.yaml
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# torch.compile calls a compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# torch alone first: it takes gigabytes, and stays in its layer while only the wheels change.
COPY constraints.txt /opt/foundry/
RUN pip install --no-cache-dir --constraint /opt/foundry/constraints.txt --index-url "$TORCH_INDEX" torch
COPY dist/*.whl /opt/foundry/
RUN pip install --no-cache-dir --constraint /opt/foundry/constraints.txt /opt/foundry/*.whl \
    && foundry plugins doctor

# Any user may run it, so that caches of libraries go where every user can write.
RUN mkdir --mode 1777 /home/foundry
ENV HOME=/home/foundry PYTHONUNBUFFERED=1
WORKDIR /experiments
ENTRYPOINT ["foundry"]
CMD ["--help"]
